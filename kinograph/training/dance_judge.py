"""Measures videos of dancers: where the joints are, which colours are worn, whether the background was kept.

The judge is told the colours of the reference and nothing of the dance. A pixel belongs to the part whose colour is nearest,
if it is near at all and most of its neighbours agree. Sleeves and boots are straight, so the ends of their pixels along the
longer axis are joints; hands (skin) tell wrists from elbows, trousers tell knees from ankles.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kinograph.media.drift import join_step
from kinograph.preprocess.animate import keypoints as kp
from kinograph.training.dancers import HAND, L_BOOT, L_SLEEVE, PARTS, R_BOOT, R_SLEEVE, SKIN, TROUSERS
from kinograph.training.judge import decibels

JOINTS = (kp.NOSE, kp.R_ELBOW, kp.R_WRIST, kp.L_ELBOW, kp.L_WRIST, kp.R_KNEE, kp.R_ANKLE, kp.L_KNEE, kp.L_ANKLE)
NEAR = 0.27  # Euclidean distance in RGB within which a pixel may belong to a part
FEWEST = 8  # pixels that a part must have to be found
MISSING = 0.5  # error that a joint counts with where it is not found, in frame heights


@dataclass(frozen=True)
class DanceVerdict:
    """What one video shows. Errors are shares: 0.06 is 6 %."""

    joint_error: float  # mean distance over frames and joints, in frame heights
    joints_missing: float  # share of joints that were not found
    colour_error: float  # mean absolute difference of the parts' median colours from the reference's
    background_db: float | None = None  # PSNR outside the mask, in replacement


def classes(clip: Tensor, colours: Tensor) -> Tensor:
    """int64 [T, H, W]: the part of each pixel of `clip` [3, T, H, W] in [-1, 1], or -1. `colours` [7, 3] in [0, 1]."""
    pixels = (clip.float() + 1) / 2
    distance = (pixels[None] - colours.to(pixels)[:, :, None, None, None]).norm(dim=1)  # [7, T, H, W]
    near, part = distance.min(0)
    votes = F.one_hot(torch.where(near < NEAR, part, len(colours)), len(colours) + 1).permute(0, 3, 1, 2).float()
    agree = F.avg_pool2d(votes, 3, stride=1, padding=1) * 9
    own = torch.gather(agree, 1, torch.where(near < NEAR, part, len(colours))[:, None])[:, 0]
    return torch.where((near < NEAR) & (own >= 5), part, -1)


def find_joints(clip: Tensor, colours: Tensor) -> Tensor:
    """[T, 9, 2] pixels (x, y) of `JOINTS`; NaN where one is not found."""
    seen = classes(clip, colours)
    result = torch.full((seen.shape[0], len(JOINTS), 2), torch.nan)
    for frame, parts in enumerate(seen.cpu()):
        result[frame, 0] = _head(parts == SKIN)
        for k, part in enumerate((R_SLEEVE, L_SLEEVE, R_BOOT, L_BOOT)):
            sleeve = k < 2
            ends = _ends(_largest(parts == part))
            if ends is None:
                continue
            first, second, axis, radius = ends
            marker = _points(parts == (SKIN if sleeve else TROUSERS))
            near_first, near_second = (int(((marker - end).norm(dim=1) < 9).sum()) for end in (first, second))
            if near_first < near_second:
                first, second, axis = second, first, -axis  # `first` is the marked end; `axis` points from it to the other
            # A hand covers the sleeve's end, and the trousers' end is covered by the boot: joints lie inside of round ends.
            marked = first - HAND * radius * axis if sleeve else first + radius * axis
            other = second - radius * axis
            result[frame, 1 + 2 * k], result[frame, 2 + 2 * k] = (other, marked) if sleeve else (marked, other)
    return result


def _points(mask: Tensor) -> Tensor:
    """[n, 2] (x, y) of the pixels that are set."""
    return mask.nonzero().flip(1).float()


def _largest(mask: Tensor, reach: float = 24.0, window: int = 13) -> Tensor:
    """`mask` within `reach` pixels of where it is densest: stray pixels far away are left out."""
    if not mask.any():
        return mask
    density = F.avg_pool2d(mask[None, None].float(), window, stride=1, padding=window // 2)[0, 0]
    y, x = divmod(int(density.argmax()), mask.shape[1])
    rows, columns = (torch.arange(size).float() for size in mask.shape)
    return mask & (torch.hypot(columns[None] - x, rows[:, None] - y) < reach)


def _head(skin: Tensor) -> Tensor:
    points = _points(_largest(skin, reach=19.0, window=25))
    # The box of a disc tells its centre whatever eyes and mouth leave out of it.
    return (points.amin(0) + points.amax(0)) / 2 if len(points) >= 4 * FEWEST else torch.full((2,), torch.nan)


def _ends(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, float] | None:
    """Both ends of the pixels along their longer axis, the unit vector from the first to the second, half the width."""
    points = _points(mask)
    if len(points) < FEWEST:
        return None
    centre = points.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((points - centre).T))
    axis = vectors[:, 1]
    along = (points - centre) @ axis
    low, high = torch.quantile(along, 0.01) - 0.5, torch.quantile(along, 0.99) + 0.5
    radius = float(min(3**0.5 * values[0].clamp(min=0).sqrt(), (high - low) / 2))
    return centre + low * axis, centre + high * axis, axis, radius


def joint_errors(found: Tensor, true: Tensor, *, height: int) -> Tensor:
    """[T, 9] in frame heights, NaN where not found; `true` [T, 20, 2]."""
    return (found - true[:, list(JOINTS)].cpu()).norm(dim=-1) / height


def colours_seen(clip: Tensor, colours: Tensor) -> Tensor:
    """[7, 3] median colour of each part in [0, 1]; NaN where it is not seen."""
    seen, pixels = classes(clip, colours), (clip.float() + 1) / 2
    medians = [pixels[:, seen == part].median(dim=1).values if (seen == part).sum() >= FEWEST else pixels.new_full((3,), torch.nan)
               for part in range(len(PARTS))]  # fmt: skip
    return torch.stack(medians).cpu()


def outside_psnr(clip: Tensor, background: Tensor, mask: Tensor) -> float:
    """dB between `clip` and `background` [3, T, H, W] in [-1, 1] where `mask` [T, H, W] is 0."""
    outside = (mask == 0).expand_as(clip)
    error = (clip.float() - background.float()).square()[outside].mean()
    return float(decibels(error.clamp(min=1e-10)))


def judge_dance(
    clip: Tensor, colours: Tensor, true: Tensor, *, background: Tensor | None = None, mask: Tensor | None = None
) -> DanceVerdict:
    """The verdict on `clip` [3, T, H, W] in [-1, 1] of a character in `colours` [7, 3] whose joints should be `true` [T, 20, 2]."""
    errors = joint_errors(find_joints(clip, colours), true, height=clip.shape[-2])
    missing = errors.isnan()
    difference = (colours_seen(clip, colours) - colours.cpu()).abs()
    kept = None if background is None or mask is None else outside_psnr(clip, background, mask)
    return DanceVerdict(
        joint_error=float(torch.where(missing, MISSING, errors).mean()),
        joints_missing=float(missing.float().mean()),
        colour_error=float(torch.where(difference.isnan(), MISSING, difference).mean()),
        background_db=kept,
    )


def mean_colour(clip: Tensor, mask: Tensor) -> Tensor:
    """[3] in [0, 1]: mean of `clip` [3, T, H, W] in [-1, 1] where `mask` [T, H, W] is set."""
    return ((clip.float() + 1) / 2)[:, mask > 0].mean(dim=1)


def mouth_opening(clip: Tensor, skin: Tensor, centre: Tensor, radius: float) -> Tensor:
    """[T]: how dark the lower half of a head is beside its `skin` [3] in [0, 1]; the head is at `centre` [T, 2], in pixels."""
    luminance = torch.tensor([0.299, 0.587, 0.114])
    grey = ((clip.float() + 1) / 2 * luminance[:, None, None, None]).sum(0)  # [T, H, W]
    y, x = torch.meshgrid(torch.arange(clip.shape[2]), torch.arange(clip.shape[3]), indexing="ij")
    dx, dy = (x - centre[:, 0, None, None]) / radius, (y - centre[:, 1, None, None]) / radius
    chin = (dx.abs() < 0.55) & (dy > 0.05) & (dy < 0.9)
    dark = (1 - grey / (skin * luminance).sum()).clamp(min=0) * chin
    return dark.sum((1, 2)) / chin.sum((1, 2)).clamp(min=1)


def seam(clip: Tensor, join: int) -> float:
    """The step to frame `join` of [3, T, H, W] from the one before, in parts of the steps beside it."""
    frames = clip.float().transpose(0, 1)
    return join_step(frames[:join], frames[join:])
