"""How much a video made of clips changes from clip to clip: colour, sharpness, and the step at each join."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BESIDE = 4  # steps that a join is compared with, on each side: frames come from the decoder in fours, with a larger step after each


@dataclass(frozen=True, kw_only=True)
class ClipDrift:
    """One clip, beside the first."""

    clip: int  # from 1
    mean: tuple[float, float, float]  # of each channel, in 0..1
    colour: float  # largest difference of a channel's mean from the first clip's, in parts of the full range
    sharpness: float  # mean step from pixel to pixel, in parts of the first clip's
    join: float | None  # step across the join with the clip before, in parts of the `BESIDE` steps on each side; None for the first clip


def measure_drift(clips: Iterable[Tensor]) -> list[ClipDrift]:
    """The drift of `clips`, each uint8 [T, H, W, 3], in order; only the edges of one are kept while the next is read."""
    drift: list[ClipDrift] = []
    first_sharpness, tail = 1.0, None
    for number, frames in enumerate(clips, start=1):
        pixels = frames.float() / 255
        mean = tuple(pixels.mean(dim=(0, 1, 2)).tolist())
        sharpness = _sharpness(pixels)
        if number == 1:
            first_sharpness = sharpness
        first = drift[0].mean if drift else mean
        drift.append(
            ClipDrift(
                clip=number,
                mean=mean,
                colour=max(abs(a - b) for a, b in zip(mean, first)),
                sharpness=sharpness / max(first_sharpness, 1e-9),
                join=None if tail is None else join_step(tail, pixels[: BESIDE + 1]),
            )
        )
        tail = pixels[-BESIDE - 1 :]
    return drift


def describe_drift(drift: Sequence[ClipDrift]) -> str:
    """One sentence for a person; "" for a single clip."""
    if len(drift) < 2:
        return ""
    colour = max(drift, key=lambda each: each.colour)
    sharpness = max(drift, key=lambda each: abs(each.sharpness - 1))
    join = max(each.join or 0.0 for each in drift)
    return (
        f"drift over {len(drift)} clips: colour at most {100 * colour.colour:.1f} % (clip {colour.clip}), "
        f"sharpness at most {100 * (sharpness.sharpness - 1):+.0f} % (clip {sharpness.clip}), "
        f"step across a join at most {join:.1f} times the steps beside it"
    )


def _sharpness(pixels: Tensor) -> float:
    across, down = pixels.diff(dim=2).abs().mean(), pixels.diff(dim=1).abs().mean()
    return float(across + down)


def join_step(before: Tensor, after: Tensor) -> float:
    """The step from the last of the frames `before` to the first `after` [n, ...], over the mean of `BESIDE` steps on each side."""
    step = (after[0] - before[-1]).abs().mean()
    axes = tuple(range(1, before.dim()))
    beside = [frames.diff(dim=0).abs().mean(axes) for frames in (before[-BESIDE - 1 :], after[: BESIDE + 1]) if len(frames) > 1]
    usual = torch.cat(beside).mean() if beside else step
    return float(step / usual.clamp(min=1e-4))
