"""8-bit storage of weights: `X.weight` as int8 beside `X.weight_scale`, one float32 scale per output channel.

    weight[o, ...] ~= int8[o, ...] * scale[o],   scale[o] = max|weight[o, ...]| / 127

This is a way to keep files small, not to compute: `unpack` restores ordinary weights while they stream in, so no model
knows of it. Rounding costs about 44 dB signal to noise for normally distributed rows of a few hundred weights.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from kinograph.errors import CheckpointError

Pair = tuple[str, torch.Tensor]
Step = Callable[[Iterable[Pair]], Iterator[Pair]]
"""A mapping of a stream of named tensors, applied while loading. It must also work on meta tensors: checks use it."""

WEIGHT, SCALE = ".weight", ".weight_scale"
LEVELS = 127  # symmetric: -128 stays unused


def pack_int8(
    state_dict: Mapping[str, torch.Tensor], *, keep: Callable[[str], bool] = lambda name: False
) -> dict[str, torch.Tensor]:
    """`state_dict` with every weight of two or more dimensions as int8 and its scale; `keep(name)` leaves one as it is.

    Biases, norms and modulation tables are few and sensitive, and are never packed.
    """
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in state_dict.items():
        if _is_matrix(name, tensor) and not keep(name):
            packed[name], packed[name.removesuffix(WEIGHT) + SCALE] = _quantise(tensor)
        else:
            packed[name] = tensor
    return packed


def unpack(stream: Iterable[Pair]) -> Iterator[Pair]:
    """The stream with int8 weights restored to float32 on the device they are on; other tensors pass unchanged.

    A weight and its scale may come in either order and from different files: the first waits for the second.
    """
    waiting: dict[str, torch.Tensor] = {}
    for name, tensor in stream:
        partner = _partner(name, tensor)
        if partner is None:
            yield name, tensor
        elif partner not in waiting:
            waiting[name] = tensor
        elif name.endswith(SCALE):
            yield partner, _dequantise(waiting.pop(partner), tensor, partner)
        else:
            yield name, _dequantise(tensor, waiting.pop(partner), name)
    if waiting:
        name, tensor = next(iter(waiting.items()))
        raise CheckpointError(
            f"the 8-bit weights are incomplete: {name} has no {_partner(name, tensor)} ({len(waiting)} such tensors); "
            "download or convert the file again"
        )


def _is_matrix(name: str, tensor: torch.Tensor) -> bool:
    return name.endswith(WEIGHT) and tensor.is_floating_point() and sum(size > 1 for size in tensor.shape) >= 2


def _partner(name: str, tensor: torch.Tensor) -> str | None:
    if name.endswith(SCALE):
        return name.removesuffix(SCALE) + WEIGHT
    if name.endswith(WEIGHT) and tensor.dtype == torch.int8:
        return name.removesuffix(WEIGHT) + SCALE
    return None


def _per_channel(scale: torch.Tensor, ndim: int) -> torch.Tensor:
    return scale.view(-1, *[1] * (ndim - 1))


def _quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weight = weight.detach().float()
    # A row of zeros keeps a positive scale, so that the division is defined and restores zeros.
    scale = (weight.flatten(1).abs().amax(dim=1) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
    levels = torch.round(weight / _per_channel(scale, weight.ndim)).clamp_(-LEVELS, LEVELS)
    return levels.to(torch.int8), scale


def _dequantise(levels: torch.Tensor, scale: torch.Tensor, name: str) -> torch.Tensor:
    if levels.dtype != torch.int8 or scale.shape != levels.shape[:1]:
        raise CheckpointError(
            f"{name} is stored as {levels.dtype} {list(levels.shape)} with a scale of shape {list(scale.shape)}, which is not "
            "the 8-bit storage this version reads (int8 with one scale per output channel); use unquantised weights"
        )
    return levels.float() * _per_channel(scale.float(), levels.ndim)
