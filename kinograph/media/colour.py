"""Colours over a long video: how later clips are kept at those of the first, and how a clip is joined to the one before.

Clips that continue one another drift: each begins from what the model made of the one before. Drift is slow, so colours are
compared as running means over `WINDOW` frames, which the motion of a scene hardly moves.

At a join colours step: frames that are encoded and decoded once more come back a little off. A clip decodes the end of the
one before along with its own frames, so how far they are off can be seen in a frame that is known.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 16  # frames
FADE = 16  # frames over which a clip goes from the colours before a join to its own
TONE_CELLS = 8  # on each axis: what differs more finely is detail, not colour
MAX_TONE = 0.15  # of the range -1..1: a larger difference is another picture, not a colour that is off
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


def joined(frames: Tensor, *, before: Tensor, again: Tensor) -> Tensor:
    """`frames` [3, T, H, W] in [-1, 1] without the step in colour to the clip before, fading over the first `FADE` of them.

    `before` [3, H, W] is the last frame of that clip, `again` what was decoded for the same moment along with `frames`.
    """
    size = frames.shape[2:]
    cells = F.adaptive_avg_pool2d((again - before)[None], (min(TONE_CELLS, size[0]), min(TONE_CELLS, size[1])))
    tone = F.interpolate(cells, size=size, mode="bilinear", align_corners=False)[0].clamp(-MAX_TONE, MAX_TONE)
    fade = (1 - torch.arange(min(FADE, frames.shape[1])) / FADE).to(frames)
    result = frames.clone()
    for frame, weight in enumerate(fade):
        result[:, frame] = (result[:, frame] - weight * tone).clamp(-1, 1)
    return result


def _running_mean(values: Tensor) -> Tensor:
    """[C, T] means of `values` [C, T] over about `WINDOW` neighbours, fewer at the ends."""
    width = min(WINDOW, values.shape[1])
    left, right = width // 2, width - 1 - width // 2
    ones = torch.ones(1, 1, width, dtype=values.dtype)
    sums = F.conv1d(F.pad(values[:, None], (left, right)), ones)[:, 0]
    counts = F.conv1d(F.pad(torch.ones_like(values[:1, None]), (left, right)), ones)[:, 0]
    return sums / counts
