"""Rotary position embedding over a grid of tokens: pair j of a head turns by (position on its axis) · (its frequency).

Adjacent channels (2j, 2j+1) form a pair. Of the P = D/2 pairs of a head the first P − 2·(P//3) belong to time, then P//3
to height and P//3 to width. On an axis with n pairs, pair j has frequency 10000^(−j/n).

Angles are computed in float64, tables kept in complex64 (cos + i·sin), the rotation done in float32: within 1e-6 of the
published float64 rotation, at half its memory.
"""
from __future__ import annotations

import torch
from torch import Tensor

BASE = 10000.0


def rope_table(
    grid: tuple[int, int, int], head_dim: int, *, device: torch.device | str | None = None, offset: tuple[int, int, int] = (0, 0, 0)
) -> Tensor:
    """[T·H·W, D/2] complex64: the unit turn of every pair of every token, frame-major, then rows, then columns.

    `grid` is (T, H, W) in tokens; positions count from `offset` on each axis and may be negative. Computed on `device`
    from its sizes alone, so a forward pass that builds it neither waits for the device nor copies to it.
    """
    time, height, width = (
        axis_turns(size, pairs, start=start, device=device) for size, pairs, start in zip(grid, axis_pairs(head_dim), offset)
    )
    turns = (time[:, None, None], height[None, :, None], width[None, None, :])  # each [T or 1, H or 1, W or 1, pairs]
    return torch.cat([turn.expand(*grid, -1) for turn in turns], dim=-1).flatten(0, 2)


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """How many pairs of a head belong to time, height and width."""
    pairs = head_dim // 2
    return (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)


def axis_turns(size: int, pairs: int, *, start: int = 0, device: torch.device | str | None = None) -> Tensor:
    """[size, pairs] complex64: the turns of one axis at positions start .. start + size − 1."""
    dtype = angle_dtype(device)
    positions = torch.arange(start, start + size, device=device, dtype=dtype)
    angles = torch.outer(positions, inverse_powers(pairs, device=device))
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def inverse_powers(count: int, *, device: torch.device | str | None = None) -> Tensor:
    """[count]: 10000^(−j/count), the frequencies of rotary axes and of the timestep embedding."""
    return BASE ** (-torch.arange(count, device=device, dtype=angle_dtype(device)) / count)


def angle_dtype(device: torch.device | str | None) -> torch.dtype:
    """float64, except on Apple GPUs, which have none."""
    return torch.float32 if device is not None and torch.device(device).type == "mps" else torch.float64


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """`x` [B, L, N, D] with every pair of channels turned by `table` [L, D/2]; float32 inside, in the dtype of `x`."""
    if torch.compiler.is_compiling():  # the compiler fuses real arithmetic into one pass and leaves complex numbers alone
        return apply_rope_reference(x, table)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[:, None]).flatten(-2).to(x.dtype)


def apply_rope_reference(x: Tensor, table: Tensor) -> Tensor:
    """The same, written out: (a, b) -> (a·cos − b·sin, a·sin + b·cos)."""
    cos, sin = torch.view_as_real(table)[:, None].unbind(-1)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)
