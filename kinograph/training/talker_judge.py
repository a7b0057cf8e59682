"""The judge of talkers: measures what a clip shows, knowing nothing of what is heard or was asked for.

    mouth       how far it is open, from the dark pixels between the lips, in each frame
    agreement   correlation with a loudness envelope, and the lag at which it is greatest
    identity    mean colours of skin, hair, background and shirt, beside those of a reference picture
    joints      hands (in the colour of the reference's skin) and the white pads at the elbows

Places are those of `talkers`: the judge means nothing for other drawings. Clips are [3, T, H, W] in [-1, 1], square.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kinograph.training.talkers import JOINTS, MOUTH_HEIGHT, PAD_RGB

MEASURED_JOINTS = ("right elbow", "left elbow", "right wrist", "left wrist")
REGIONS = {  # (left, right, top, bottom) in pictures; several parts of one region are averaged
    "skin": ((0.42, 0.58, 0.402, 0.425),),
    "hair": ((0.45, 0.55, 0.16, 0.195),),
    "background": ((0.01, 0.11, 0.05, 0.35), (0.89, 0.99, 0.05, 0.35)),
    "shirt": ((0.43, 0.57, 0.86, 0.95),),
}
_MOUTH = (0.435, 0.565, 0.40, 0.61)
_ARM_SIDES = {"right": (0.0, 0.36, 0.56, 1.0), "left": (0.64, 1.0, 0.56, 1.0)}
_DARK, _BLACK = 0.27, 0.11  # luminance of the lightest pixel that counts as dark, and of one that counts in full
_TEETH = 0.25  # share of the opening that teeth hide
_MAX_LAG = 6


def _cut(clip: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """The part of `clip` [3, T, S, S] inside `box`, in [0, 1]."""
    side = clip.shape[-1]
    left, right, top, bottom = (round(edge * side) for edge in box)
    return (clip[:, :, top:bottom, left:right].float() + 1) / 2


def mouth_opening(clip: Tensor) -> Tensor:
    """[T]: about 0 closed to 1 wide open."""
    red, green, blue = _cut(clip, _MOUTH)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    dark = ((_DARK - luminance) / (_DARK - _BLACK)).clamp(0, 1)
    return dark.mean(-1).sum(-1) / (MOUTH_HEIGHT * (1 - _TEETH) * clip.shape[-1])


def correlation(a: Tensor, b: Tensor) -> float:
    """Of two series [n]; 0 where one does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = a.norm() * b.norm()
    return float(a @ b / scale) if scale > 1e-8 else 0.0


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a mouth follows a sound."""

    correlation: float  # without shifting
    lag: float  # frames that the mouth is behind the sound (negative: ahead), where their correlation is greatest
    best: float  # that correlation
    closed: float  # mean opening while the sound is silent; NaN where it never is

    def __str__(self) -> str:
        return f"correlation {self.correlation:.3f}, lag {self.lag:+.2f} frames (there {self.best:.3f}), open in silence {self.closed:.3f}"


def agreement(opening: Tensor, envelope: Tensor) -> Agreement:
    """`opening` and `envelope` [n each]; the longer one is cut."""
    count = min(len(opening), len(envelope))
    opening, envelope = opening[:count].double(), envelope[:count].double()
    reach = min(_MAX_LAG, count // 4)
    scores = []
    for shift in range(-reach, reach + 1):
        mouth, sound = opening[max(0, shift) : count + min(0, shift)], envelope[max(0, -shift) : count - max(0, shift)]
        scores.append(correlation(mouth, sound))
    best = max(range(len(scores)), key=scores.__getitem__)
    lag = float(best - reach)
    if 0 < best < len(scores) - 1:  # the top of the parabola through three points
        before, top, after = scores[best - 1 : best + 2]
        bend = before - 2 * top + after
        lag += 0.5 * (before - after) / bend if bend < 0 else 0.0
    silent = envelope < 0.02
    closed = float(opening[silent].mean()) if silent.any() else float("nan")
    return Agreement(correlation=scores[reach], lag=lag, best=scores[best], closed=closed)


def colours(clip: Tensor) -> dict[str, Tensor]:
    """Mean RGB in [0, 1] of each of `REGIONS`, over all frames of `clip`."""
    return {
        name: torch.stack([_cut(clip, box).mean((1, 2, 3)) for box in boxes]).mean(0) for name, boxes in REGIONS.items()
    }


def identity_error(clip: Tensor, reference: Tensor) -> dict[str, float]:
    """Per region, the greatest difference of a channel's mean from that of `reference` [3, 1, H, W], as a share of the full range."""
    shown, wanted = colours(clip), colours(reference)
    return {name: float((shown[name] - wanted[name].to(shown[name])).abs().max()) for name in REGIONS}


def arm_joints(clip: Tensor, reference: Tensor) -> Tensor:
    """[T, 4, 2]: (x, y) of `MEASURED_JOINTS` in pictures; the middle of its half where a joint is not seen."""
    skin = colours(reference)["skin"].to(clip.device)
    white = torch.tensor(PAD_RGB, device=clip.device)
    found = []
    for name in MEASURED_JOINTS:
        side, part = name.split()
        color, reach = (white, 0.30) if part == "elbow" else (skin, 0.16)
        found.append(_centre(clip, _ARM_SIDES[side], color, reach))
    return torch.stack(found, dim=1)


def _centre(clip: Tensor, box: tuple[float, float, float, float], color: Tensor, reach: float) -> Tensor:
    """[T, 2]: the middle of what is of `color`, near where most of it is."""
    part = _cut(clip, box)
    like = (1 - (part - color[:, None, None, None]).norm(dim=0) / reach).clamp(min=0)  # [T, h, w]
    height, width = like.shape[1:]
    blurred = F.avg_pool2d(like[:, None], 9, stride=1, padding=4)[:, 0]
    peak = blurred.flatten(1).argmax(1)
    rows = torch.arange(height, device=clip.device)[None, :, None]
    columns = torch.arange(width, device=clip.device)[None, None, :]
    near = ((rows - (peak // width)[:, None, None]) ** 2 + (columns - (peak % width)[:, None, None]) ** 2) <= 9**2
    weight = like * near
    mass = weight.sum((1, 2))
    side = clip.shape[-1]
    x = box[0] + ((columns + 0.5) * weight).sum((1, 2)) / mass.clamp(min=1e-6) / side
    y = box[2] + ((rows + 0.5) * weight).sum((1, 2)) / mass.clamp(min=1e-6) / side
    middle = torch.tensor([(box[0] + box[1]) / 2, (box[2] + box[3]) / 2], device=clip.device)
    return torch.where((mass > 4)[:, None], torch.stack([x, y], dim=1), middle)


def joint_error(clip: Tensor, reference: Tensor, wanted: Tensor) -> float:
    """Mean distance, in picture heights, of the arms' joints from `wanted` [T, 8, 2], which has `talkers.JOINTS`."""
    true = torch.stack([wanted[:, JOINTS.index(name)] for name in MEASURED_JOINTS], dim=1).to(clip.device)
    inside = ((true > 0.0) & (true < 1.0)).all(-1)
    distance = (arm_joints(clip, reference) - true).norm(dim=-1)
    return float(distance[inside].mean())
