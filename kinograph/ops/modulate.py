"""Adaptive modulation: tokens scaled, shifted and gated by rows that depend on the timestep.

    modulate(x)    = x · (1 + scale) + shift
    gated_add(x,y) = x + gate · y

x and y are [B, L, C]. shift, scale and gate are rows [B, R, C], where R divides L and row r serves the L/R consecutive
tokens from r·L/R on: one row per sample, per latent frame, or per token. Rows are broadcast, never expanded to tokens.
"""
from __future__ import annotations

import torch
from torch import Tensor

from kinograph.ops.norm import layer_norm


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """[B, L, C], float32 for float32 rows: x · (1 + scale) + shift, in one pass."""
    return torch.addcmul(shift.unsqueeze(2), _grouped(x, shift), (1 + scale).unsqueeze(2)).flatten(1, 2)


def modulate_reference(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The formula, with the rows expanded to tokens."""
    return x.float() * (1 + _per_token(scale, x)) + _per_token(shift, x)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float) -> Tensor:
    """[B, L, C] float32: modulate(layer_norm(x)). With a single row the norm's own weight and bias do it, saving a pass."""
    if shift.shape[:2] == (1, 1):
        return layer_norm(x, 1 + scale.flatten(), shift.flatten(), eps=eps)
    return modulate(layer_norm(x, eps=eps), shift, scale)


def modulated_norm_reference(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float) -> Tensor:
    """The two steps, one after the other."""
    return modulate_reference(layer_norm(x, eps=eps), shift, scale)


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """[B, L, C] in the dtype of `x` and `gate` (float32): x + gate · y in one pass; `y` may be of a smaller dtype."""
    return torch.addcmul(_grouped(x, gate), _grouped(y, gate), gate.unsqueeze(2)).flatten(1, 2)


def gated_add_reference(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """The formula, with the rows expanded to tokens."""
    return x.float() + _per_token(gate, x) * y.float()


def _grouped(x: Tensor, rows: Tensor) -> Tensor:
    return x.unflatten(1, (rows.shape[1], -1))  # [B, R, L/R, C]


def _per_token(rows: Tensor, x: Tensor) -> Tensor:
    return rows.float().repeat_interleave(x.shape[1] // rows.shape[1], dim=1)
