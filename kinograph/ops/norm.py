"""Normalisation over the last axis, with float32 statistics whatever the dtype of the input.

    layer_norm: (x − mean) / √(variance + eps) · weight + bias    -> float32: it feeds float32 modulation
    rms_norm:   x / √(mean(x²) + eps) · weight                    -> the dtype of x
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """float32, the shape of `x`. `weight` and `bias` [C] may be of any dtype, or absent."""
    return F.layer_norm(x.float(), x.shape[-1:], _float(weight), _float(bias), eps)


def layer_norm_reference(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """The formula in float32."""
    x = x.float()
    centred = x - x.mean(dim=-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps)
    y = y if weight is None else y * weight.float()
    return y if bias is None else y + bias.float()


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """The dtype and shape of `x`; `weight` [C]. One rounding, at the end (the published code rounds before the weight too)."""
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)


def rms_norm_reference(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """The formula in float32."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def _float(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.float()
