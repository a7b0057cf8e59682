"""The judge: measures what a clip shows, knowing nothing of what was asked for.

It names the main object's colour and shape, its motion and the background, by comparing pixels with the palette and
outlines of `toybox.py`. It is strict about those outlines and means nothing for other drawing styles.

    1. Background: the tone that most pixels are nearest to. Colour: the palette entry with most *core* pixels; soft edges,
       which mix two colours into a third, are never core.
    2. A soft mask of that colour in each frame; its area and centre over time.
    3. Motion, first match wins: moving camera, growing or shrinking, bounce, one of eight directions, spin, still.
    4. Shape: the mask, centred and scaled to equal area, against every shape in every rotation.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kinograph.training.toybox import (
    BACKGROUND_RGB,
    BACKGROUNDS,
    COLOR_RGB,
    COLORS,
    MOVES,
    SHAPES,
    Scene,
    background_tones,
    describe,
    shape_distance,
)

ATTRIBUTES = ("color", "shape", "motion", "background")
UNCLEAR = "unclear"  # an attribute that could not be measured

_CORE = 0.2  # farthest RGB distance (0..1 per channel) of a core pixel from its palette entry
_EDGE = 1  # half the width of soft edges, where the picture is about 128 pixels wide
_PRESENT = 0.004  # core pixels of a second object, as a share of the main one's
_MIN_AREA = 0.0015  # share of the picture, below which the object is lost
_GRID = 40  # samples across a normalised outline
_GRID_REACH = 1.6  # half its width, in radii of the disc of equal area
_ANGLES = 72

# Lengths are in picture heights or widths.
_MIN_MOVE = 0.11
_MIN_GROWTH = 0.45  # of log area
_BOUNCE_PATH, _BOUNCE_RATIO, _BOUNCE_SWAY = 0.35, 1.6, 0.06
_MIN_TURN = math.radians(45)
_CHANGE, _CAMERA_SHARE = 0.02, 0.07  # a changed part of the background, per channel; their share if the camera moves


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a clip shows: entries of `toybox.COLORS`, `SHAPES`, `MOTIONS`, `BACKGROUNDS`, or "unclear"."""

    color: str
    shape: str
    motion: str
    background: str
    confidence: dict[str, float] = field(default_factory=dict)  # per attribute, 0..1

    def agrees(self, scene: Scene, index: int) -> dict[str, bool]:
        """Per attribute, whether the clip shows what row `index` of `scene` says."""
        wanted = describe(scene, index)
        return {name: getattr(self, name) == getattr(wanted, name) for name in ATTRIBUTES}


# ------------------------------------------------------------------------------------------------- colours and masks


@lru_cache(maxsize=4)
def _palette(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Object colours `[8, 3]`, background tones `[N, 3]` and the background each tone belongs to `[N]`."""
    tones = background_tones(device)  # [6, K, 3]
    owner = torch.arange(len(BACKGROUNDS), device=device).repeat_interleave(tones.shape[1])
    return torch.tensor(COLOR_RGB, device=device), tones.flatten(0, 1), owner


def _as_unit_rgb(clip: Tensor) -> Tensor:
    """`[3, T, H, W]`, uint8 in 0..255 or float in -1..1, as float32 in 0..1."""
    if clip.ndim != 4 or clip.shape[0] != 3:
        raise ValueError(f"a clip must be [3, frames, height, width]; got {list(clip.shape)}")
    if clip.dtype == torch.uint8:
        return clip.float() / 255
    return (clip.float().clamp(-1, 1) + 1) / 2


def _distances(pixels: Tensor, anchors: Tensor) -> Tensor:
    """Euclidean RGB distance of `pixels [3, T, H, W]` to each of `anchors [N, 3]`: `[N, T, H, W]`."""
    flat = torch.cdist(pixels.flatten(1).T[None], anchors[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
    return flat.T.unflatten(1, pixels.shape[1:])


def _inner(labels: Tensor) -> Tensor:
    """`labels [T, H, W]` where all the neighbours have the same one, elsewhere -1: soft edges are thinner than that."""
    label = labels.float()[:, None]
    high, low = (sign * F.max_pool2d(sign * label, 2 * _EDGE + 1, stride=1, padding=_EDGE) for sign in (1, -1))
    return torch.where(high == low, labels[:, None], -1)[:, 0]


@dataclass(frozen=True)
class _Found:
    """The main object of a clip."""

    color: int
    color_share: float  # of all core pixels
    background: int
    background_share: float  # of all background pixels
    mask: Tensor  # [T, H, W] in 0..1


def _find_object(pixels: Tensor) -> _Found | None:
    """Steps 1 and half of 2; None where no pixel looks like an object."""
    colors, tones, owner = _palette(pixels.device)
    coarse = F.avg_pool2d(pixels, max(pixels.shape[-1] // 128, 1))
    to_color, to_tone = _distances(coarse, colors), _distances(coarse, tones)
    (nearest_color, color), (nearest_tone, tone) = to_color.min(0), to_tone.min(0)

    ground = nearest_tone < nearest_color
    votes = torch.bincount(owner[tone[ground]], minlength=len(BACKGROUNDS)).float()
    core = _inner(torch.where((nearest_color < _CORE) & ~ground, color, -1))
    counts = torch.bincount(core[core >= 0], minlength=len(COLORS)).float()
    if counts.sum() < 0.5 * _MIN_AREA * ground.numel():
        return None
    main, background = int(counts.argmax()), int(votes.argmax())

    # The mask compares the main colour with this background and with other colours that are really there.
    present = counts > _PRESENT * counts[main]
    present[main] = False
    others = torch.cat([tones[owner == background], colors[present]])
    to_main, to_other = _distances(pixels, colors[main : main + 1])[0], _distances(pixels, others).amin(0)
    inside = to_other / (to_other + to_main).clamp(min=1e-6)
    return _Found(
        color=main,
        color_share=float(counts[main] / counts.sum()),
        background=background,
        background_share=float(votes[background] / votes.sum().clamp(min=1)),
        mask=((inside - 0.5) * 3 + 0.5).clamp(0, 1),
    )


# ------------------------------------------------------------------------------------------------------------ motion


@dataclass(frozen=True)
class _Track:
    """The object over time, all `[T]` on the CPU; lengths as fractions of the picture."""

    area: Tensor
    x: Tensor
    y: Tensor
    present: Tensor  # bool

    @property
    def is_lost(self) -> bool:
        return self.present.float().mean().item() < 0.8


def _follow(mask: Tensor) -> _Track:
    height, width = mask.shape[1:]
    weight = mask.sum((1, 2)).clamp(min=1e-6)
    x = (torch.arange(width, device=mask.device) + 0.5) / width
    y = (torch.arange(height, device=mask.device) + 0.5) / height
    area = (weight / (height * width)).cpu()
    return _Track(
        area=area,
        x=((mask.sum(1) * x).sum(1) / weight).cpu(),
        y=((mask.sum(2) * y).sum(1) / weight).cpu(),
        present=area > _MIN_AREA,
    )


def _ends(values: Tensor) -> tuple[float, float]:
    """First and last value, each the mean of up to two frames."""
    return values[:2].mean().item(), values[-2:].mean().item()


def _background_change(pixels: Tensor, mask: Tensor) -> float:
    """Share of the background that differs between the first frame and the middle or last one.

    Looks at small areas instead of pixels, so that noise does not count, and away from the object and its shadow.
    """
    block, reach = max(pixels.shape[-1] // 64, 1), 5  # of 64 areas across
    shown = [0, pixels.shape[1] // 2, -1]
    coarse = F.avg_pool2d(pixels[:, shown], block)  # [3, 3, h, w]
    taken = F.max_pool2d(F.avg_pool2d(mask[shown], block), 2 * reach + 1, stride=1, padding=reach) > 0.2

    def share(frame: int) -> float:
        free = ~(taken[0] | taken[frame])
        changed = (coarse[:, 0] - coarse[:, frame]).abs().mean(0) > _CHANGE
        return ((changed & free).sum() / free.sum().clamp(min=1)).item()

    return max(share(1), share(2))


def _camera_motion(track: _Track) -> tuple[str, float]:
    """The camera's motion from where the object seems to go."""
    (x0, x1), (area0, area1) = _ends(track.x), _ends(track.area)
    growth, shift = math.log(area1 / area0), x1 - x0
    if abs(growth) > 2 * abs(shift):
        return ("zoom in" if growth > 0 else "zoom out"), min(abs(growth) / 2 / _MIN_GROWTH, 1.0)
    return ("pan left" if shift > 0 else "pan right"), min(abs(shift) / 2 / _MIN_MOVE, 1.0)


def _direction(dx: float, dy: float) -> tuple[str, float]:
    """The nearest of the eight directions, y down; certain on the direction, 0 half-way to the next."""
    eighth = math.pi / 4
    around = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
    assert set(around) == set(MOVES)
    turn = math.atan2(dy, dx) / eighth
    return around[round(turn) % 8], 1 - 2 * abs(turn - round(turn))


def _motion(track: _Track, turn: float, background_change: float) -> tuple[str, float]:
    """Step 3: the first description that fits, and how far it is from the next."""
    (x0, x1), (y0, y1), (area0, area1) = _ends(track.x), _ends(track.y), _ends(track.area)
    dx, dy, growth = x1 - x0, y1 - y0, math.log(max(area1, 1e-9) / max(area0, 1e-9))
    moved = math.hypot(dx, dy)
    path = track.y.diff().abs().sum().item()
    sway = (track.x.max() - track.x.min()).item()

    if background_change > _CAMERA_SHARE and (moved > _MIN_MOVE / 2 or abs(growth) > _MIN_GROWTH):
        return _camera_motion(track)
    if abs(growth) > _MIN_GROWTH:
        return ("grow" if growth > 0 else "shrink"), min(abs(growth) / 2 / _MIN_GROWTH, 1.0)
    if path > _BOUNCE_PATH and path > _BOUNCE_RATIO * moved and sway < _BOUNCE_SWAY + moved:
        return "bounce", min(path / 2 / _BOUNCE_PATH, 1.0)
    if moved > _MIN_MOVE:
        return _direction(dx, dy)
    if turn > _MIN_TURN:
        return "spin", min(turn / 2 / _MIN_TURN, 1.0)
    return "still", 1 - max(moved / _MIN_MOVE, turn / _MIN_TURN)


# ------------------------------------------------------------------------------------------------------------- shape


@lru_cache(maxsize=4)
def _templates(device: torch.device) -> Tensor:
    """Every shape in every rotation, centred and scaled to the area of a disc of radius 1: `[6, angles, grid²]`."""
    steps = (torch.arange(_GRID, device=device) + 0.5) / _GRID * 2 - 1
    angles = torch.arange(_ANGLES, device=device) / _ANGLES * 2 * math.pi
    shape = torch.arange(len(SHAPES), device=device)

    fine = (torch.arange(400, device=device) + 0.5) / 200 - 1
    y, x = torch.meshgrid(fine * 1.5, fine * 1.5, indexing="ij")
    solid = (shape_distance(shape, x[None], y[None]) < 0).float()
    count = solid.sum((1, 2))
    scale = torch.sqrt(count * (3 / 400) ** 2 / math.pi)[:, None, None, None]
    center_x, center_y = ((solid * axis).sum((1, 2)) / count for axis in (x, y))

    y, x = torch.meshgrid(steps * _GRID_REACH, steps * _GRID_REACH, indexing="ij")
    cos, sin = torch.cos(angles)[:, None, None], torch.sin(angles)[:, None, None]
    turned_x, turned_y = (cos * x + sin * y)[None] * scale, (cos * y - sin * x)[None] * scale
    turned_x, turned_y = turned_x + center_x[:, None, None, None], turned_y + center_y[:, None, None, None]
    distance = shape_distance(shape, turned_x, turned_y) / scale
    pixel = 2 * _GRID_REACH / _GRID
    return (0.5 - distance / pixel).clamp(0, 1).flatten(2)


def _outlines(mask: Tensor, track: _Track) -> Tensor:
    """The mask of each frame, centred and scaled to the area of a disc of radius 1: `[T, grid²]`."""
    height, width = mask.shape[1:]
    steps = (torch.arange(_GRID, device=mask.device) + 0.5) / _GRID * 2 - 1
    radius = torch.sqrt(track.area * height * width / math.pi).to(mask.device)[:, None]  # pixels
    reach = steps[None] * _GRID_REACH * radius
    x = 2 * (track.x.to(mask.device)[:, None] + reach / width) - 1
    y = 2 * (track.y.to(mask.device)[:, None] + reach / height) - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    return F.grid_sample(mask[:, None], grid, align_corners=False)[:, 0].flatten(1)


def _overlap(outlines: Tensor, templates: Tensor) -> Tensor:
    """Soft intersection over union of `[T, P]` with `[N, P]`: `[T, N]`."""
    both = torch.minimum(outlines[:, None], templates[None]).sum(-1)
    return both / (outlines.sum(-1)[:, None] + templates.sum(-1)[None] - both).clamp(min=1e-6)


def _shape(outlines: Tensor) -> tuple[int, float, float]:
    """Step 4: (shape, its mean overlap, how far the overlap is above the next shape's)."""
    templates = _templates(outlines.device)
    chosen = outlines[torch.linspace(0, len(outlines) - 1, min(9, len(outlines))).round().long()]
    overlap = _overlap(chosen, templates.flatten(0, 1)).unflatten(1, templates.shape[:2])
    best, second = overlap.amax(2).mean(0).topk(2)[0].tolist()
    return int(overlap.amax(2).mean(0).argmax()), best, best - second


def _turned(outlines: Tensor, shape: int) -> float:
    """How far the object turned in all, in radians, by its best angle in each frame."""
    period = {"square": 4, "triangle": 3, "star": 5, "heart": 1}.get(SHAPES[shape])
    if period is None:
        return 0.0
    angles = _ANGLES // period if _ANGLES % period == 0 else math.ceil(_ANGLES / period)
    overlap = _overlap(outlines, _templates(outlines.device)[shape, :angles])
    angle = overlap.argmax(1).cpu() * (2 * math.pi / _ANGLES)
    symmetry = 2 * math.pi / period
    steps = torch.remainder(angle.diff() + symmetry / 2, symmetry) - symmetry / 2
    return abs(steps.sum().item())


# ------------------------------------------------------------------------------------------------------------ verdict


def judge(clip: Tensor) -> Verdict:
    """What `clip` shows: `[3, T, H, W]`, float in [-1, 1] or uint8, on any device. At least two frames."""
    pixels = _as_unit_rgb(clip)
    found = _find_object(pixels)
    if found is None:
        return Verdict(color=UNCLEAR, shape=UNCLEAR, motion=UNCLEAR, background=_plain_background(pixels))
    named = {"color": COLORS[found.color], "background": BACKGROUNDS[found.background]}
    confidence = {"color": found.color_share, "background": found.background_share}
    track = _follow(found.mask)
    if track.is_lost:
        return Verdict(**named, shape=UNCLEAR, motion=UNCLEAR, confidence=confidence)
    outlines = _outlines(found.mask, track)
    shape, overlap, lead = _shape(outlines)
    motion, clarity = _motion(track, _turned(outlines, shape), _background_change(pixels, found.mask))
    confidence |= {"shape": overlap * min(lead / 0.1, 1.0), "motion": clarity}
    return Verdict(**named, shape=SHAPES[shape], motion=motion, confidence=confidence)


def _plain_background(pixels: Tensor) -> str:
    tones = torch.tensor(BACKGROUND_RGB, device=pixels.device)
    return BACKGROUNDS[int((tones - pixels.mean((1, 2, 3))).norm(dim=1).argmin())]


def judge_accuracy(clips: Tensor | Sequence[Tensor], scenes: Scene) -> dict[str, float]:
    """Share of `clips` that show what the rows of `scenes` say: per attribute, and "all" for all of them at once."""
    if len(clips) != len(scenes):
        raise ValueError(f"the judge needs one scene for each clip; got {len(clips)} clips and {len(scenes)} scenes")
    scenes = scenes.to("cpu")
    return accuracy_of([judge(clip).agrees(scenes, index) for index, clip in enumerate(clips)])


def accuracy_of(agreements: Sequence[dict[str, bool]]) -> dict[str, float]:
    """The share of True per attribute, and of all attributes True at once, over the results of `Verdict.agrees`."""
    total = max(len(agreements), 1)
    shares = {name: sum(agreement[name] for agreement in agreements) / total for name in ATTRIBUTES}
    return {**shares, "all": sum(all(agreement.values()) for agreement in agreements) / total}


def accuracy_by_class(agreements: Sequence[dict[str, bool]], scenes: Scene) -> dict[str, dict[str, float]]:
    """Per attribute and wanted value ("shape" -> "star"), the share of True for that attribute."""
    results: dict[str, dict[str, list[bool]]] = {name: {} for name in ATTRIBUTES}
    for index, agreement in enumerate(agreements):
        wanted = describe(scenes, index)
        for name in ATTRIBUTES:
            results[name].setdefault(getattr(wanted, name), []).append(agreement[name])
    return {name: {value: sum(hits) / len(hits) for value, hits in sorted(found.items())} for name, found in results.items()}


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each of two batches of pixels [B, ...] in [-1, 1]: [B]; infinite where they are equal."""
    return decibels((a.float() - b.float()).square().flatten(1).mean(dim=1))


def decibels(error: Tensor) -> Tensor:
    """The ratio for mean squared errors of pixels in [-1, 1]."""
    return 10 * torch.log10(4 / error)
