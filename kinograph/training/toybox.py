"""Toybox: captioned clips of one coloured shape that moves, drawn on any device.

A clip is a function of a `Scene`, a record of `[B]` tensors, so drawing is one batch of tensor operations without host
reads: it runs inside a CUDA graph and under `torch.compile`. Everything is drawn from signed distances, which give
antialiased edges, soft shadows and dilated masks for the price of one subtraction.

Scenes vary only in what a caption can name, apart from a few pixels of jitter: whatever the text leaves open is noise
that a small model would have to spend capacity on.

Coordinates: x to the right and y down, as fractions of the width and height of the whole picture; radii are fractions
of its shorter side. `[B, T]` for what changes over time, `[B, T, h, w]` for what changes over the picture.
"""
from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
BACKGROUNDS = ("white", "gray", "pale blue", "pale green", "pale yellow", "pale pink")
PATTERNS = ("plain", "stripes", "dots", "hills")
SIZES = ("small", "medium", "large")
SPEEDS = ("slowly", "", "quickly")
CORNERS = ("upper left", "upper right", "lower left", "lower right")
SPLITS = ("train", "held_out")

MOVES = ("left", "right", "up", "down", "up left", "up right", "down left", "down right")
CAMERA_MOTIONS = ("pan left", "pan right", "zoom in", "zoom out")
MOTIONS = (*MOVES, "bounce", "spin", "grow", "shrink", "still", *CAMERA_MOTIONS)
SPINNABLE = ("square", "triangle", "star", "heart")  # the others look the same at every angle

COLOR_RGB = (
    (0.91, 0.21, 0.22), (0.98, 0.53, 0.11), (0.99, 0.80, 0.14), (0.20, 0.66, 0.34),
    (0.13, 0.43, 0.91), (0.53, 0.25, 0.75), (0.97, 0.43, 0.68), (0.13, 0.14, 0.18),
)  # fmt: skip
BACKGROUND_RGB = (
    (0.965, 0.965, 0.970), (0.72, 0.73, 0.75), (0.72, 0.85, 0.97), (0.75, 0.91, 0.77), (0.99, 0.93, 0.67), (0.99, 0.82, 0.86),
)  # fmt: skip
_PATTERN_RGB = (
    (0.875, 0.885, 0.910), (0.61, 0.62, 0.65), (0.59, 0.76, 0.94), (0.61, 0.83, 0.65), (0.96, 0.85, 0.48), (0.96, 0.70, 0.77),
)  # fmt: skip

# Per motion: direction (x, y), hops, turns, growth, camera pan, camera zoom; most are 0 for most motions.
_STILL = (0, 0, 0, 0, 0, 0, 0)
_DIAGONAL = 0.75  # of the travel of a straight move, on each axis
_MOTION_ROWS = {
    "left": (-1, 0, 0, 0, 0, 0, 0),
    "right": (1, 0, 0, 0, 0, 0, 0),
    "up": (0, -1, 0, 0, 0, 0, 0),
    "down": (0, 1, 0, 0, 0, 0, 0),
    "up left": (-_DIAGONAL, -_DIAGONAL, 0, 0, 0, 0, 0),
    "up right": (_DIAGONAL, -_DIAGONAL, 0, 0, 0, 0, 0),
    "down left": (-_DIAGONAL, _DIAGONAL, 0, 0, 0, 0, 0),
    "down right": (_DIAGONAL, _DIAGONAL, 0, 0, 0, 0, 0),
    "bounce": (0, 0, 1, 0, 0, 0, 0),
    "spin": (0, 0, 0, 1, 0, 0, 0),
    "grow": (0, 0, 0, 0, 1, 0, 0),
    "shrink": (0, 0, 0, 0, -1, 0, 0),
    "still": _STILL,
    "pan left": (0, 0, 0, 0, 0, -1, 0),
    "pan right": (0, 0, 0, 0, 0, 1, 0),
    "zoom in": (0, 0, 0, 0, 0, 0, 1),
    "zoom out": (0, 0, 0, 0, 0, 0, -1),
}

_RADIUS = (34 / 256, 46 / 256, 60 / 256)
_TRAVEL = (0.28, 0.42, 0.56)  # by speed, in pictures
_GROWTH = (1.5, 2.0, 2.5)  # last radius over first
_TURN = tuple(math.radians(degrees) for degrees in (90, 150, 240))
_BOUNCE_HEIGHT, _HOPS = 0.30, 2
_PAN, _ZOOM = 0.26, 1.6  # travel of the camera in pictures; last magnification over first
_MARGIN = 0.02  # between a moving object and the picture's edge
_REACH = 1.12  # farthest point of any shape from its centre, in radii
_POSITION_JITTER, _RADIUS_JITTER = 0.04, 0.04

_SECOND_RADIUS = 0.08
_CORNER_XY = ((0.125, 0.125), (0.875, 0.125), (0.125, 0.875), (0.875, 0.875))
# A diagonal move ends near two corners; the second object takes one of the other two.
_FREE_CORNERS = {"up left": (1, 2), "down right": (1, 2), "up right": (0, 3), "down left": (0, 3)}

_LIGHT = (-0.6, -0.8)  # unit vector towards the light: upper left
_SHADOW_OFFSET = (0.11, 0.17)  # in radii
_SHADOW_BLUR, _SHADOW_DEPTH = 0.11, 0.26

_SIZE_WEIGHTS = (0.25, 0.5, 0.25)
_SPEED_WEIGHTS = (0.2, 0.6, 0.2)


# ------------------------------------------------------------------------------------------------------------ scenes


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a batch of clips shows. Every field is `[B]`: int64 indices into the tuples above, float32 for jitter."""

    shape: Tensor
    color: Tensor
    motion: Tensor
    size: Tensor
    speed: Tensor
    background: Tensor
    pattern: Tensor
    second: Tensor  # float: 1 where a second object is shown, else 0
    second_shape: Tensor
    second_color: Tensor
    second_corner: Tensor
    jitter_x: Tensor
    jitter_y: Tensor
    jitter_radius: Tensor  # factor

    def __len__(self) -> int:
        return self.shape.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Scene:
        """The scenes of `rows`, a slice or a tensor of indices on the same device."""
        return self._map(lambda field: field[rows])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Scene:
        return self._map(lambda field: field.to(device, non_blocking=non_blocking))

    def _map(self, function) -> Scene:
        return replace(self, **{field.name: function(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Description:
    """One scene in words: entries of `COLORS`, `SHAPES`, ... `second` is (color, shape, corner) or None."""

    color: str
    shape: str
    motion: str
    size: str
    speed: str
    background: str
    pattern: str
    second: tuple[str, str, str] | None


def describe(scene: Scene, index: int) -> Description:
    """Row `index` of `scene` in words. Reads the host: keep it out of captured graphs."""
    second = None
    if scene.second[index] > 0:
        second = (
            COLORS[scene.second_color[index]],
            SHAPES[scene.second_shape[index]],
            CORNERS[scene.second_corner[index]],
        )
    return Description(
        color=COLORS[scene.color[index]],
        shape=SHAPES[scene.shape[index]],
        motion=MOTIONS[scene.motion[index]],
        size=SIZES[scene.size[index]],
        speed=SPEEDS[scene.speed[index]],
        background=BACKGROUNDS[scene.background[index]],
        pattern=PATTERNS[scene.pattern[index]],
        second=second,
    )


def descriptions(scene: Scene) -> list[Description]:
    """All rows in words, much faster than one by one."""
    rows = scene._map(Tensor.tolist)  # plain numbers: reading thousands of tensor elements is slow
    return [describe(rows, index) for index in range(len(scene))]


def is_held_out(color: str, shape: str, motion: str, background: str) -> bool:
    """Whether training never sees this combination: 2 of the 6 backgrounds, for a tenth of the (color, shape, motion) triples.

    Whole triples are not held out: a model can learn that a yellow circle never bounces. A hash of the words decides:
    stable for ever.
    """
    digest = hashlib.blake2b(f"{color}/{shape}/{motion}".encode(), digest_size=4).digest()
    number = int.from_bytes(digest, "big")
    reserved = number // 10 % 3
    return number % 10 == 0 and BACKGROUNDS.index(background) in (reserved, reserved + 3)


@lru_cache(maxsize=8)
def _combination_weights(split: str, camera_rate: float) -> Tensor:
    """Probability of each (color, shape, motion, background), flat, float64; 0 for those outside the split."""
    moves = len(MOTIONS) - len(CAMERA_MOTIONS)
    rate = [camera_rate / len(CAMERA_MOTIONS) if motion in CAMERA_MOTIONS else (1 - camera_rate) / moves for motion in MOTIONS]

    def weight(color: str, shape: str, motion: str, background: str) -> float:
        impossible = motion == "spin" and shape not in SPINNABLE
        if impossible or is_held_out(color, shape, motion, background) != (split == "held_out"):
            return 0.0
        return rate[MOTIONS.index(motion)]

    return torch.tensor([weight(*combination) for combination in product(COLORS, SHAPES, MOTIONS, BACKGROUNDS)], dtype=torch.float64)


def sample_scenes(
    n: int,
    seed: int | torch.Generator,
    *,
    split: str = "train",
    second_rate: float = 0.20,
    camera_rate: float = 0.08,
    pattern_rate: float = 0.20,
) -> Scene:
    """`n` scenes on the CPU, the same for the same seed.

    The rates are the shares of clips with a second object, with a moving camera, and with a patterned background. A
    moving camera always has a pattern (else its pan could not be seen) and never a second object. "held_out" has only
    combinations of color, shape, motion and background that "train" never has.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'held_out'; got {split!r}")
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)

    def uniform() -> Tensor:
        return torch.rand(n, generator=generator)

    def pick(count: int) -> Tensor:
        return torch.randint(count, (n,), generator=generator)

    def weighted(weights: Tensor) -> Tensor:
        edges = weights.double().cumsum(0)
        picked = torch.searchsorted(edges, torch.rand(n, generator=generator, dtype=torch.float64) * edges[-1], right=True)
        return picked.clamp(max=len(weights) - 1)

    combination = weighted(_combination_weights(split, camera_rate))
    background = combination % len(BACKGROUNDS)
    motion = combination // len(BACKGROUNDS) % len(MOTIONS)
    shape = combination // (len(BACKGROUNDS) * len(MOTIONS)) % len(SHAPES)
    color = combination // (len(BACKGROUNDS) * len(MOTIONS) * len(SHAPES))

    camera = motion >= MOTIONS.index(CAMERA_MOTIONS[0])
    timeless = camera | (motion == MOTIONS.index("still")) | (motion == MOTIONS.index("bounce"))
    speed = torch.where(timeless, SPEEDS.index(""), weighted(torch.tensor(_SPEED_WEIGHTS)))
    patterned = camera | (uniform() < pattern_rate)
    free = torch.tensor([_FREE_CORNERS.get(name, tuple(range(4))) * (2 if name in _FREE_CORNERS else 1) for name in MOTIONS])

    return Scene(
        shape=shape,
        color=color,
        motion=motion,
        size=weighted(torch.tensor(_SIZE_WEIGHTS)),
        speed=speed,
        background=background,
        pattern=torch.where(patterned, 1 + pick(len(PATTERNS) - 1), 0),
        second=((uniform() < second_rate) & ~camera).float(),
        second_shape=(shape + 1 + pick(len(SHAPES) - 1)) % len(SHAPES),
        second_color=(color + 1 + pick(len(COLORS) - 1)) % len(COLORS),
        second_corner=free[motion, pick(4)],
        jitter_x=(2 * uniform() - 1) * _POSITION_JITTER,
        jitter_y=(2 * uniform() - 1) * _POSITION_JITTER,
        jitter_radius=1 + (2 * uniform() - 1) * _RADIUS_JITTER,
    )


# ------------------------------------------------------------------------------------------------------------- poses


class _Tables:
    """The constants above as tensors of one device."""

    def __init__(self, device: torch.device) -> None:
        def table(rows) -> Tensor:
            return torch.tensor(rows, dtype=torch.float32, device=device)

        self.color = table(COLOR_RGB)
        self.background = table(BACKGROUND_RGB)
        self.pattern = table(_PATTERN_RGB)
        self.motion = table([_MOTION_ROWS[name] for name in MOTIONS])
        self.radius = table(_RADIUS)
        self.travel = table(_TRAVEL)
        self.growth = table(_GROWTH).log()
        self.turn = table(_TURN)
        self.corner = table(_CORNER_XY)
        self.polygon = table([_POLYGONS.get(name, _POLYGONS["square"]) for name in SHAPES])
        self.annulus = table([_ANNULI.get(name, _ANNULI["circle"]) for name in SHAPES])
        self.family = torch.tensor([_family(name) for name in SHAPES], device=device)


@lru_cache(maxsize=16)
def _tables(device: torch.device) -> _Tables:
    # Cached because a copy from the host may not happen inside a captured graph; the warm-up run fills it.
    return _Tables(device)


@dataclass(frozen=True)
class _Pose:
    """Where an object is: all `[B, T]`, in the world's coordinates."""

    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor  # radians, clockwise


@dataclass(frozen=True)
class _Camera:
    """What the picture shows of the world: `world = (picture - 0.5) / zoom + 0.5 + (pan, 0)`; both `[B, T]`."""

    pan: Tensor
    zoom: Tensor


def _progress(frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Time from 0 to 1, plain and with a gentle start and stop; both `[1, T]`."""
    time = torch.arange(frames, dtype=torch.float32, device=device)[None] / max(frames - 1, 1)
    return time, 0.5 * time + 0.5 * time * time * (3 - 2 * time)


def _pose(scene: Scene, frames: int) -> tuple[_Pose, _Camera]:
    tables = _tables(scene.shape.device)
    time, eased = _progress(frames, scene.shape.device)
    dx, dy, hop, spin, grow, pan, zoom = tables.motion[scene.motion][:, :, None].unbind(1)  # each [B, 1]
    around = eased - 0.5  # every change is centred on the canonical pose

    radius = (tables.radius[scene.size] * scene.jitter_radius)[:, None]
    room = 0.5 - _MARGIN - _REACH * radius

    def travel(direction: Tensor, jitter: Tensor) -> Tensor:
        half = 0.5 * direction * tables.travel[scene.speed][:, None]
        start, end = ((jitter[:, None] + end * half).clamp(-room, room) for end in (-1, 1))
        return 0.5 + torch.lerp(start, end, eased)

    bounce = hop * _BOUNCE_HEIGHT * (0.5 - torch.sin(_HOPS * math.pi * time).abs())
    pose = _Pose(
        x=travel(dx, scene.jitter_x),
        y=travel(dy, scene.jitter_y) + bounce,
        radius=radius * torch.exp(grow * tables.growth[scene.speed][:, None] * around),
        angle=spin * tables.turn[scene.speed][:, None] * time,
    )
    camera = _Camera(pan=pan * _PAN * around, zoom=torch.exp(zoom * math.log(_ZOOM) * around))
    return pose, camera


def _still_camera(scene: Scene) -> _Camera:
    """One frame `[1, 1]` for what never moves: the second object, which no scene with a moving camera has."""
    one = torch.ones(1, 1, device=scene.shape.device)
    return _Camera(pan=torch.zeros_like(one), zoom=one)


def _second_pose(scene: Scene) -> _Pose:
    x, y = _tables(scene.shape.device).corner[scene.second_corner][:, :, None].unbind(1)
    return _Pose(x=x, y=y, radius=torch.full_like(x, _SECOND_RADIUS), angle=torch.zeros_like(x))


# ------------------------------------------------------------------------------------------------------------ shapes
# Three families of signed distances serve the six shapes; a radius is about 1, the centre is (0, 0).

_ROUND, _CORNERED, _HEART = range(3)
# (corners, outer radius, inner radius, angle of the first corner, rounding): corners at the outer radius alternate
# with points at the inner one. A regular polygon is the star whose inner points lie on its edges.
_POLYGONS = {
    "square": (4, 0.70 * math.sqrt(2), 0.70, math.pi / 4, 0.12),
    "triangle": (3, 0.98, 0.49, 0.0, 0.13),
    "star": (5, 1.05, 0.50, 0.0, 0.07),
}
_ANNULI = {"circle": (0.0, 0.94), "ring": (0.72, 0.25)}  # (radius of the middle line, half the thickness)
_HEART_SIDE, _HEART_CENTER, _HEART_ROUNDING = 0.72, 0.89, 0.07


def _family(shape: str) -> int:
    return _ROUND if shape in _ANNULI else _CORNERED if shape in _POLYGONS else _HEART


def _polygon_distance(x: Tensor, y: Tensor, polygon: tuple[Tensor, ...]) -> Tensor:
    """Folds the plane into one half of one corner's sector, where the outline is a single segment."""
    corners, outer, inner, first, rounding = polygon
    sector = 2 * math.pi / corners
    angle = torch.atan2(x, -y) - first
    folded = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    rho = torch.sqrt(x * x + y * y)
    # From the corner (outer, 0) along the edge to the inner point; `u, v` is the pixel seen from the corner.
    edge_u, edge_v = inner * torch.cos(sector / 2) - outer, inner * torch.sin(sector / 2)
    u, v = rho * torch.cos(folded) - outer, rho * torch.sin(folded)
    along = ((u * edge_u + v * edge_v) / (edge_u * edge_u + edge_v * edge_v)).clamp(0, 1)
    gap_u, gap_v = u - along * edge_u, v - along * edge_v
    distance = torch.sqrt(gap_u * gap_u + gap_v * gap_v)
    return torch.where(edge_u * v - edge_v * u > 0, -distance, distance) - rounding


def _heart_distance(x: Tensor, y: Tensor) -> Tensor:
    """A square on its tip with a half disc on each upper side; `side` is half the square's diagonal."""
    side = _HEART_SIDE
    x, y = x.abs(), _HEART_CENTER - y  # the right half, y up from the tip
    lobe = torch.sqrt((x - side / 2) ** 2 + (y - 1.5 * side) ** 2) - side / math.sqrt(2)
    along = ((x + y) / 2).clamp(0, side)
    flank = (x - along) ** 2 + (y - along) ** 2
    cleft = x * x + (y - 2 * side) ** 2
    below = torch.sqrt(torch.minimum(flank, cleft)) * torch.where(x > y, 1.0, -1.0)
    return torch.where(x + y > 2 * side, lobe, below) - _HEART_ROUNDING


def shape_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance in radii, negative inside, of the upright shape at (0, 0) of radius 1.

    `shape` is `[B]`; `x`, `y` broadcast to `[B, ...]` and so does the result.
    """
    tables = _tables(shape.device)

    def per_sample(values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (x.ndim - 1))

    middle, half = (per_sample(values) for values in tables.annulus[shape].unbind(1))
    family = per_sample(tables.family[shape])
    distance = (torch.sqrt(x * x + y * y) - middle).abs() - half
    distance = torch.where(
        family == _CORNERED, _polygon_distance(x, y, tuple(per_sample(values) for values in tables.polygon[shape].unbind(1))), distance
    )
    return torch.where(family == _HEART, _heart_distance(x, y), distance)


# ----------------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class _View:
    """The pixels of a window, as world coordinates of each frame."""

    x: Tensor  # [B, T, 1, w]
    y: Tensor  # [B, T, h, 1]
    zoom: Tensor  # [B, T, 1, 1]
    width: int  # of the whole picture, in pixels
    height: int

    @property
    def side(self) -> int:
        """Pixels that a radius of 1 spans."""
        return min(self.width, self.height)


Window = tuple[Tensor, Tensor, int, int]  # top row [B], left column [B], rows, columns


def _view(scene: Scene, camera: _Camera, *, height: int, width: int, window: Window | None) -> _View:
    device = scene.shape.device
    if window is None:
        zero = torch.zeros(1, dtype=torch.float32, device=device)
        window = (zero, zero, height, width)
    top, left, rows, columns = window

    def centers(start: Tensor, count: int, total: int) -> Tensor:
        pixels = start.float()[:, None] + torch.arange(count, dtype=torch.float32, device=device) + 0.5
        return pixels / total - 0.5

    x = centers(left, columns, width)[:, None, None, :]
    y = centers(top, rows, height)[:, None, :, None]
    zoom, pan = camera.zoom[..., None, None], camera.pan[..., None, None]
    return _View(x=x / zoom + 0.5 + pan, y=y / zoom + 0.5, zoom=zoom, width=width, height=height)


def _seen_from(pose: _Pose, view: _View) -> tuple[Tensor, Tensor]:
    """The view's pixels in radii around the object, not rotated; each `[B, T, h, w]`."""
    radius = pose.radius[..., None, None] * view.side
    x = (view.x - pose.x[..., None, None]) * view.width / radius
    y = (view.y - pose.y[..., None, None]) * view.height / radius
    return torch.broadcast_tensors(x, y)


def _rotated_distance(shape: Tensor, pose: _Pose, x: Tensor, y: Tensor) -> Tensor:
    cos, sin = torch.cos(pose.angle)[..., None, None], torch.sin(pose.angle)[..., None, None]
    return shape_distance(shape, cos * x + sin * y, cos * y - sin * x)


def _pixels_per_radius(pose: _Pose, view: _View) -> Tensor:
    return pose.radius[..., None, None] * view.side * view.zoom


def _coverage(distance: Tensor, pixels: Tensor | float = 1.0) -> Tensor:
    """Share of a pixel inside an edge at `distance`, a ramp one pixel wide."""
    return (0.5 - distance * pixels).clamp(0, 1)


def _lit(color: Tensor, x: Tensor, y: Tensor, distance: Tensor) -> Tensor:
    """`color [B, 3]` under the light, `[B, 3, T, h, w]`: brighter towards it, darker away, with a thin darker rim."""
    towards = (x * _LIGHT[0] + y * _LIGHT[1]).clamp(-1.1, 1.1)
    glow = torch.exp(-((x - 0.42 * _LIGHT[0]) ** 2 + (y - 0.42 * _LIGHT[1]) ** 2) / 0.22)
    rim = (1 + distance / 0.09).clamp(0, 1)
    white = (0.07 * towards.clamp(min=0) + 0.09 * glow)[:, None]
    dark = (0.10 * (-towards).clamp(min=0) + 0.07 * rim)[:, None]
    color = color[:, :, None, None, None]
    return (color + (1 - color) * white) * (1 - dark)


def _paint(picture: Tensor, shape: Tensor, color: Tensor, pose: _Pose, view: _View, *, opacity: Tensor | None = None) -> Tensor:
    """`picture [B, 3, T, h, w]` with a shadow and then the object over it; `opacity` is `[B]`, 1 when None."""
    x, y = _seen_from(pose, view)
    cast = _rotated_distance(shape, pose, x - _SHADOW_OFFSET[0], y - _SHADOW_OFFSET[1])
    shadow = _SHADOW_DEPTH * torch.sigmoid(-cast / (0.45 * _SHADOW_BLUR))
    distance = _rotated_distance(shape, pose, x, y)
    cover = _coverage(distance, _pixels_per_radius(pose, view))
    if opacity is not None:
        opacity = opacity[:, None, None, None]
        shadow, cover = shadow * opacity, cover * opacity
    picture = picture * (1 - shadow[:, None])
    return torch.lerp(picture, _lit(color, x, y, distance), cover[:, None])


def _stripes(view: _View) -> Tensor:
    period = 0.2
    phase = torch.remainder(view.x * view.width / view.side + view.y * view.height / view.side, period)
    return _coverage((phase - period / 2).abs() - period / 4, view.side * view.zoom / math.sqrt(2))


def _dots(view: _View) -> Tensor:
    cell, radius = 0.1875, 0.042
    x, y = view.x * view.width / view.side, view.y * view.height / view.side
    staggered = torch.remainder(torch.floor(y / cell), 2) * cell / 2
    x, y = torch.remainder(x + staggered, cell) - cell / 2, torch.remainder(y, cell) - cell / 2
    return _coverage(torch.sqrt(x * x + y * y) - radius, view.side * view.zoom)


def _hills(view: _View) -> Tensor:
    def ridge(level: float, height: float, waves: float, phase: float) -> Tensor:
        line = level + height * torch.sin(2 * math.pi * waves * view.x + phase)
        return _coverage(line - view.y, view.height * view.zoom)

    return 0.6 * ridge(0.62, 0.07, 1.3, 0.4) + 0.4 * ridge(0.82, 0.06, 1.8, 2.6)


def _shade_background(color: Tensor, height: Tensor) -> Tensor:
    """The soft vertical gradient: lighter at the top (`height` 0) than at the bottom (1)."""
    return (color + (1 - color) * 0.35 * (1 - height)) * (1 - 0.06 * height)


def _paint_background(background: Tensor, pattern: Tensor, view: _View) -> Tensor:
    """`[B, 3, T, h, w]`: the colour of `background` `[B]`, its `pattern` `[B]` in a deeper tone, and the gradient."""
    tables = _tables(background.device)
    pattern = pattern[:, None, None, None]
    amount = torch.where(pattern == PATTERNS.index("stripes"), _stripes(view), 0.0)
    amount = torch.where(pattern == PATTERNS.index("dots"), _dots(view), amount)
    amount = torch.where(pattern == PATTERNS.index("hills"), _hills(view), amount)
    plain, deep = (table[background][:, :, None, None, None] for table in (tables.background, tables.pattern))
    return _shade_background(torch.lerp(plain, deep, amount[:, None]), view.y.clamp(0, 1)[:, None])


def draw_background(background: Tensor, pattern: Tensor, *, height: int, width: int) -> Tensor:
    """Empty scenes: RGB in [0, 1], `[B, 3, height, width]`, of indices `[B]` into `BACKGROUNDS` and `PATTERNS`."""
    x, y = ((torch.arange(size, device=background.device) + 0.5) / size for size in (width, height))
    zoom = torch.ones(1, 1, 1, 1, device=x.device)
    view = _View(x=x.expand(1, 1, 1, -1), y=y[:, None].expand(1, 1, -1, 1), zoom=zoom, width=width, height=height)
    return _paint_background(background, pattern, view)[:, :, 0].expand(-1, -1, height, width)


def background_tones(device: torch.device | str = "cpu") -> Tensor:
    """RGB in [0, 1] of the colours each background is made of, without shadows: `[6, tones, 3]`."""
    tables = _tables(torch.device(device))
    colors = torch.stack([tables.background, tables.pattern], dim=1)[:, :, None]
    heights = torch.linspace(0, 1, 3, device=device)[:, None]
    return _shade_background(colors, heights).flatten(1, 2)


def draw(scene: Scene, *, height: int, width: int, frames: int, window: Window | None = None) -> Tensor:
    """The clips of `scene`: RGB in [-1, 1], float32, `[B, 3, frames, height, width]` on the scene's device.

    `window` (top row `[B]`, left column `[B]`, rows, columns) draws only that part of each picture, at its cost.
    """
    pose, camera = _pose(scene, frames)
    view = _view(scene, camera, height=height, width=width, window=window)
    tables = _tables(scene.shape.device)
    picture = _paint_background(scene.background, scene.pattern, view)
    second_view = _view(scene, _still_camera(scene), height=height, width=width, window=window)
    picture = _paint(picture, scene.second_shape, tables.color[scene.second_color], _second_pose(scene), second_view, opacity=scene.second)
    picture = _paint(picture, scene.shape, tables.color[scene.color], pose, view)
    return picture * 2 - 1


def object_mask(
    scene: Scene, *, height: int, width: int, frames: int, window: Window | None = None, margin: float = 0.0
) -> Tensor:
    """Where the objects are: coverage in [0, 1], `[B, 1, frames, height, width]`, grown by `margin` pixels."""
    def cover(shape: Tensor, pose: _Pose, camera: _Camera) -> Tensor:
        view = _view(scene, camera, height=height, width=width, window=window)
        distance = _rotated_distance(shape, pose, *_seen_from(pose, view)) * _pixels_per_radius(pose, view)
        return _coverage(distance - margin)

    second = cover(scene.second_shape, _second_pose(scene), _still_camera(scene)) * scene.second[:, None, None, None]
    return torch.maximum(cover(scene.shape, *_pose(scene, frames)), second)[:, None]


def object_windows(
    scene: Scene,
    *,
    height: int,
    width: int,
    frames: int,
    size: tuple[int, int],
    generator: torch.Generator | None = None,
) -> Window:
    """Random windows of `size` (rows, columns) around points near the main object's outline at a random frame.

    For `draw(..., window=...)`. Random numbers come from the scene's device, so this can be captured in a graph.
    """
    rows, columns = size
    pose, camera = _pose(scene, frames)
    batch, device = len(scene), scene.shape.device
    chance = torch.rand(3, batch, generator=generator, device=device)
    frame = (chance[0] * frames).long().clamp(max=frames - 1)[:, None]
    x, y, radius, pan, zoom = (
        values.expand(batch, frames).gather(1, frame)[:, 0] for values in (pose.x, pose.y, pose.radius, camera.pan, camera.zoom)
    )
    # A point in the ring between 0.3 and 1.3 radii: most windows then hold an edge, some only inside or background.
    reach = (0.3 + chance[1]) * radius * zoom * min(height, width)
    angle = 2 * math.pi * chance[2]

    def start(center: Tensor, step: Tensor, count: int, total: int) -> Tensor:
        at = (center - 0.5) * zoom + 0.5
        return torch.round(at * total + step - count / 2).clamp(0, total - count)

    left = start(x - pan, reach * torch.cos(angle), columns, width)
    top = start(y, reach * torch.sin(angle), rows, height)
    return top, left, rows, columns
