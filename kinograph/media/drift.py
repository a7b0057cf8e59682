"""How much a video made of clips changes from clip to clip: colour, sharpness, and the step at each join."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClipDrift:
    """One clip, beside the first."""

    clip: int  # from 1
    mean: tuple[float, float, float]  # of each channel, in 0..1
    colour: float  # largest difference of a channel's mean from the first clip's, in parts of the full range
    sharpness: float  # mean step from pixel to pixel, in parts of the first clip's
    join: float | None  # step across the join with the clip before, in parts of the neighbouring steps; None for the first clip


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
                join=None if tail is None else _join(tail, pixels[:2]),
            )
        )
        tail = pixels[-2:]
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


def _join(before: Tensor, after: Tensor) -> float:
    """The step from `before`'s last frame to `after`'s first, over the mean of the steps within each."""
    step = (after[0] - before[-1]).abs().mean()
    beside = [frames.diff(dim=0).abs().mean() for frames in (before, after) if len(frames) > 1]
    usual = torch.stack(beside).mean() if beside else step
    return float(step / usual.clamp(min=1e-4))
