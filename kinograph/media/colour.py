"""Colours over a long video: what they are, and how later clips are kept at those of the first.

Clips that continue one another drift: each begins from what the model made of the one before. Drift is slow, so colours are
compared as running means over `WINDOW` frames, which the motion of a scene hardly moves.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 16  # frames
MAX_GAIN = 1.25  # a contrast further off than this is the scene's, not drift


def colours(frames: Tensor) -> Tensor:
    """[2, 3] float32: mean and deviation of each channel over the newest `WINDOW` frames of `frames` [3, T, H, W]."""
    newest = frames[:, -WINDOW:].float()
    return torch.stack([newest.mean(dim=(1, 2, 3)), newest.std(dim=(1, 2, 3), correction=0)])


def anchored(frames: Tensor, anchor: Tensor, strength: float) -> Tensor:
    """`frames` [3, T, H, W] in [-1, 1] with their running mean and contrast moved by `strength` (0..1) of the way to `anchor`.

    `anchor`: what `colours` says of the clip that the video is to stay with.
    """
    means = frames.mean(dim=(2, 3))  # [3, T]
    squares = frames.square().mean(dim=(2, 3))
    mean, square = (_running_mean(values) for values in (means, squares))
    deviation = (square - mean.square()).clamp(min=1e-6).sqrt()
    gain = (anchor[1, :, None] / deviation).clamp(1 / MAX_GAIN, MAX_GAIN)
    gain = 1 + strength * (gain - 1)
    target = mean + strength * (anchor[0, :, None] - mean)
    return ((frames - mean[..., None, None]) * gain[..., None, None] + target[..., None, None]).clamp(-1, 1)


def _running_mean(values: Tensor) -> Tensor:
    """[C, T] means of `values` [C, T] over about `WINDOW` neighbours, fewer at the ends."""
    width = min(WINDOW, values.shape[1])
    left, right = width // 2, width - 1 - width // 2
    ones = torch.ones(1, 1, width, dtype=values.dtype)
    sums = F.conv1d(F.pad(values[:, None], (left, right)), ones)[:, 0]
    counts = F.conv1d(F.pad(torch.ones_like(values[:1, None]), (left, right)), ones)[:, 0]
    return sums / counts
