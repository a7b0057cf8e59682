"""Talkers: clips of a drawn person who speaks, on any device, and the pose of their upper body as coloured limbs.

A clip is a function of a `Person`, a record of `[B]` tensors, the frame times, and how far the mouth is open and how wide it
is in every frame: whatever is heard decides the mouth, and nothing else. Drawn from signed distances like `toybox`.

    face     skin, hair (colour and style), eyes that blink, a head that sways and nods
    mouth    height follows the loudness, width the vowel (narrow "oo" to wide "ee"); dark inside, with teeth; closed in silence
    body     shirt, two arms with pads at the elbows and bare hands

Coordinates: x to the right and y down, as fractions of the (square) picture. `[B, T]` for what changes over time.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor

from kinograph.training.toybox import BACKGROUND_RGB, BACKGROUNDS, COLOR_RGB, COLORS

FPS = 16
SIDE = 128  # pixels that the widths below are meant for

HAIRS = ("black", "brown", "blond", "red", "gray", "purple")
HAIR_STYLES = ("short", "long", "bun", "fringe")
_TOYS = {**dict(zip(COLORS, COLOR_RGB)), **dict(zip(BACKGROUNDS, BACKGROUND_RGB))}


@dataclass(frozen=True, kw_only=True)
class Palette:
    """What colours people come in, and whether they have teeth, lips and whites of the eyes."""

    skins: tuple[tuple[float, float, float], ...]
    hairs: tuple[tuple[float, float, float], ...]  # one for each of HAIRS
    backgrounds: tuple[tuple[float, float, float], ...]
    shirts: tuple[tuple[float, float, float], ...]
    detailed: bool
    jitter: float  # of each channel


PALETTES = {
    "natural": Palette(
        skins=((0.98, 0.84, 0.72), (0.93, 0.72, 0.56), (0.80, 0.58, 0.42), (0.64, 0.45, 0.33), (0.52, 0.36, 0.27)),
        hairs=((0.12, 0.11, 0.14), (0.38, 0.22, 0.12), (0.93, 0.78, 0.35), (0.78, 0.22, 0.12), (0.66, 0.67, 0.70), (0.48, 0.25, 0.62)),
        backgrounds=(
            (0.76, 0.78, 0.80), (0.62, 0.78, 0.95), (0.58, 0.82, 0.60), (0.76, 0.70, 0.93), (0.22, 0.30, 0.48), (0.20, 0.56, 0.58),
        ),
        shirts=((0.80, 0.20, 0.22), (0.16, 0.50, 0.30), (0.16, 0.22, 0.52), (0.90, 0.74, 0.20), (0.90, 0.46, 0.64), (0.26, 0.27, 0.30)),
        detailed=True,
        jitter=0.03,
    ),
    # For a VAE that has only seen `toybox`: its colours alone, and nothing small.
    "toys": Palette(
        skins=tuple(_TOYS[name] for name in ("yellow", "orange", "white")),
        hairs=tuple(_TOYS[name] for name in ("black", "purple", "yellow", "red", "blue", "purple")),
        backgrounds=tuple(_TOYS[name] for name in ("gray", "pale blue", "pale green", "pale pink")),
        shirts=tuple(_TOYS[name] for name in ("black", "red", "green", "blue", "purple")),
        detailed=False,
        jitter=0.0,
    ),
}  # fmt: skip
MOUTH_DARK = (0.10, 0.03, 0.05)
PAD_RGB = (0.965, 0.965, 0.97)  # of the elbows: no shirt and no background is as bright
_TEETH_RGB, _LIP_RGB = (0.96, 0.95, 0.92), (0.80, 0.28, 0.30)

HEAD_X, HEAD_Y, HEAD_RX, HEAD_RY = 0.50, 0.38, 0.205, 0.25
MOUTH_BELOW = 0.125  # the mouth's middle below the head's
MOUTH_WIDTH = (0.19, 0.27)  # narrow and wide: 24 to 35 pixels of 128
MOUTH_HEIGHT = 0.13  # wide open: 16.6 pixels of 128
EYE_X, EYE_ABOVE = 0.085, 0.025
_NECK = (0.50, 0.665)
_SHOULDER_X, _SHOULDER_Y = 0.185, 0.775
_UPPER_ARM, _FOREARM = 0.19, 0.20
_ARM_HALF, _HAND, _PAD = 0.040, 0.050, 0.034  # radii
_REST_ANGLES = (15.0, 45.0)  # of the arms of a person without a pose: the hands are below the picture

LIMBS = (("neck", "head"), ("neck", "right shoulder"), ("neck", "left shoulder"), ("right shoulder", "right elbow"),
         ("right elbow", "right wrist"), ("left shoulder", "left elbow"), ("left elbow", "left wrist"))  # fmt: skip
_LIMB_RGB = ((1.0, 0.1, 0.1), (1.0, 0.6, 0.0), (0.7, 0.9, 0.0), (0.1, 0.9, 0.2), (0.0, 0.8, 0.9), (0.2, 0.3, 1.0), (0.9, 0.2, 0.9))
JOINTS = ("head", "neck", "right shoulder", "left shoulder", "right elbow", "left elbow", "right wrist", "left wrist")
_LIMB_HALF = 0.026  # half a limb's thickness: 6.7 pixels of 128 across


@dataclass(frozen=True, kw_only=True)
class Person:
    """Who is drawn and how they move. Every field is `[B]`, `skin_rgb` and its like `[B, 3]`; phases are in turns."""

    skin_rgb: Tensor
    hair_rgb: Tensor
    background_rgb: Tensor
    shirt_rgb: Tensor
    hair: Tensor  # int64 index into HAIRS, for captions
    style: Tensor  # int64 index into HAIR_STYLES
    detailed: Tensor  # float: 1 where teeth, lips and whites of the eyes are drawn
    gestures: Tensor  # float: 1 where the arms move, 0 where they hang
    blink_period: Tensor  # frames
    blink_phase: Tensor
    sway: Tensor  # [B, 4]: amplitudes of x and y, periods in frames of x and y
    sway_phase: Tensor  # [B, 2]
    arm_period: Tensor  # [B, 4] frames: right upper, right fore, left upper, left fore
    arm_phase: Tensor  # [B, 4]

    def __len__(self) -> int:
        return self.skin_rgb.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Person:
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to(self, device: torch.device | str) -> Person:
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def gesturing(self, value: float | Tensor) -> Person:
        """The same people with `gestures` set."""
        return replace(self, gestures=self.gestures * 0 + value)


def sample_people(n: int, seed: int | torch.Generator, *, palette: str = "natural", gesture_rate: float = 0.4) -> Person:
    """`n` people on the CPU, the same for the same seed; a share of them gestures."""
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    colors = PALETTES[palette]

    def pick(table: tuple[tuple[float, float, float], ...]) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(table), (n,), generator=generator)
        return index, (torch.tensor(table)[index] + uniform(3, low=-colors.jitter, high=colors.jitter)).clamp(0, 1)

    hair, hair_rgb = pick(colors.hairs)
    return Person(
        skin_rgb=pick(colors.skins)[1],
        hair_rgb=hair_rgb,
        background_rgb=pick(colors.backgrounds)[1],
        shirt_rgb=pick(colors.shirts)[1],
        hair=hair,
        detailed=torch.full((n,), float(colors.detailed)),
        style=torch.randint(len(HAIR_STYLES), (n,), generator=generator),
        gestures=(uniform() < gesture_rate).float(),
        blink_period=uniform(low=36.0, high=64.0),
        blink_phase=uniform(),
        sway=torch.cat([uniform(2, low=0.006, high=0.022), uniform(2, low=36.0, high=80.0)], dim=1),
        sway_phase=uniform(2),
        arm_period=uniform(4, low=28.0, high=56.0),
        arm_phase=uniform(4),
    )


def caption_of(person: Person, index: int) -> str:
    """One sentence on row `index`. Reads the host."""
    return f"a person with {HAIRS[person.hair[index]]} hair speaks"


# ------------------------------------------------------------------------------------------------------------ motion


def _wave(times: Tensor, period: Tensor, phase: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * (times / period[:, None] + phase[:, None]))


def joints(person: Person, times: Tensor) -> Tensor:
    """Where the `JOINTS` are, (x, y) in pictures: `[B, T, 8, 2]`; `times` [B, T] or [1, T] in frames."""
    dx = person.sway[:, :1] * _wave(times, person.sway[:, 2], person.sway_phase[:, 0])
    dy = 0.7 * person.sway[:, 1:2] * _wave(times, person.sway[:, 3], person.sway_phase[:, 1])
    still = torch.zeros_like(dx)
    head = torch.stack([HEAD_X + dx, HEAD_Y + dy], dim=-1)
    neck = torch.stack([_NECK[0] + 0.3 * dx, _NECK[1] + still], dim=-1)
    found = {"head": head, "neck": neck}
    moving = person.gestures[:, None] > 0.5
    for place, (side, sign) in enumerate((("right", -1.0), ("left", 1.0))):
        upper = 30 + 15 * _wave(times, person.arm_period[:, 2 * place], person.arm_phase[:, 2 * place])
        fore = 168 + 28 * _wave(times, person.arm_period[:, 2 * place + 1], person.arm_phase[:, 2 * place + 1])
        rest = 2 * _wave(times, person.arm_period[:, 2 * place], person.arm_phase[:, 2 * place])
        upper = torch.deg2rad(torch.where(moving, upper, _REST_ANGLES[0] + rest))
        fore = torch.deg2rad(torch.where(moving, fore, _REST_ANGLES[1] + rest))
        shoulder = torch.stack([HEAD_X + sign * _SHOULDER_X + 0.3 * dx, _SHOULDER_Y + still], dim=-1)
        elbow = shoulder + _UPPER_ARM * torch.stack([sign * upper.sin(), upper.cos()], dim=-1)
        wrist = elbow + _FOREARM * torch.stack([sign * fore.sin(), fore.cos()], dim=-1)
        found |= {f"{side} shoulder": shoulder, f"{side} elbow": elbow, f"{side} wrist": wrist}
    return torch.stack([found[name] for name in JOINTS], dim=2)


def eyes_open(person: Person, times: Tensor) -> Tensor:
    """[B, T] in [0, 1]: 0 for the two frames or so of a blink."""
    since = torch.remainder(times / person.blink_period[:, None] + person.blink_phase[:, None], 1.0) * person.blink_period[:, None]
    return ((since - 1.5).abs() - 0.8).clamp(0, 1)


# ----------------------------------------------------------------------------------------------------------- drawing


@lru_cache(maxsize=16)
def _grid(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    centers = (torch.arange(side, dtype=torch.float32, device=device) + 0.5) / side
    return centers[None, None, None, :], centers[None, None, :, None]


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Cached, because a copy from the host may not happen inside a captured graph: the steps that warm up fill it."""
    return torch.tensor(values, device=device)


def _rgb(values: tuple[float, float, float], person: Person) -> Tensor:
    """[B, 3]"""
    return _constant(values, person.skin_rgb.device).expand(len(person), 3)


def _per_pixel(values: Tensor) -> Tensor:
    return values[..., None, None]


class _Canvas:
    """A picture `[B, 3, T, S, S]` that shapes are laid over, edges one and a half pixels soft."""

    def __init__(self, background: Tensor, frames: int, side: int) -> None:
        self.x, self.y = _grid(side, background.device)
        self.side = side
        shade = (1.05 - 0.13 * self.y).expand(1, 1, side, side)  # lighter above
        self.rgb = (background[:, :, None, None, None] * shade).clamp(0, 1).repeat(1, 1, frames, 1, 1)

    def cover(self, distance: Tensor, softness: float = 1.5) -> Tensor:
        """[B, T, S, S]: share of each pixel inside the edge at `distance` 0, which is in pictures."""
        return (0.5 - distance * (self.side / softness)).clamp(0, 1)

    def lay(self, cover: Tensor, rgb: Tensor) -> None:
        """`rgb` [B, 3], or [B, 3, T, S, S], where `cover` [B, T, S, S] is 1."""
        color = rgb[:, :, None, None, None] if rgb.ndim == 2 else rgb
        self.rgb += (color - self.rgb) * cover[:, None]

    def ellipse(self, x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
        """About the distance to an ellipse: exact along the axes."""
        u, v = (self.x - _per_pixel(x)) / rx, (self.y - _per_pixel(y)) / ry
        radius = torch.sqrt(u * u + v * v + 1e-9)
        slope = torch.sqrt((u / rx) ** 2 + (v / ry) ** 2 + 1e-9) / radius
        return (radius - 1) / slope

    def capsule(self, start: Tensor, end: Tensor, half: float) -> Tensor:
        """Distance to a limb from `start` to `end`, [B, T, 2] each, of thickness 2 * half."""
        ax, ay = self.x - _per_pixel(start[..., 0]), self.y - _per_pixel(start[..., 1])
        bx, by = _per_pixel(end[..., 0] - start[..., 0]), _per_pixel(end[..., 1] - start[..., 1])
        along = ((ax * bx + ay * by) / (bx * bx + by * by + 1e-9)).clamp(0, 1)
        return torch.sqrt((ax - along * bx) ** 2 + (ay - along * by) ** 2 + 1e-12) - half

    def rounded_box(self, x: Tensor, y: Tensor, half_x: Tensor | float, half_y: Tensor | float, rounding: Tensor | float) -> Tensor:
        u, v = (self.x - _per_pixel(x)).abs() - half_x + rounding, (self.y - _per_pixel(y)).abs() - half_y + rounding
        outside = torch.sqrt(u.clamp(min=0) ** 2 + v.clamp(min=0) ** 2 + 1e-12)
        return outside + torch.maximum(u, v).clamp(max=0) - rounding


def draw(person: Person, times: Tensor, opening: Tensor, width: Tensor, *, side: int = SIDE) -> Tensor:
    """Clips RGB in [-1, 1], float32, `[B, 3, T, side, side]`.

    `times` [B, T] or [1, T] in frames; `opening` [B, T] in [0, 1], 0 closed; `width` [B, T] in [0, 1], narrow to wide.
    """
    batch, frames = opening.shape
    times = times.expand(batch, frames)
    canvas = _Canvas(person.background_rgb, frames, side)
    places = dict(zip(JOINTS, joints(person, times).unbind(2)))
    _draw_body(canvas, person, places)
    hx, hy = places["head"].unbind(-1)
    _draw_head(canvas, person, hx, hy)
    _draw_eyes(canvas, person, hx, hy, eyes_open(person, times))
    _draw_mouth(canvas, person, hx, hy + MOUTH_BELOW, opening, width)
    _draw_arms(canvas, person, places)
    return canvas.rgb * 2 - 1


def _has_style(person: Person, name: str) -> Tensor:
    """[B, 1, 1, 1]: 1 for those with that hair style."""
    return _per_pixel((person.style == HAIR_STYLES.index(name)).float()[:, None])


def _draw_body(canvas: _Canvas, person: Person, places: dict[str, Tensor]) -> None:
    hx, hy = places["head"].unbind(-1)  # long hair and a bun lie behind everything else
    behind = canvas.rounded_box(hx, hy + 0.07, HEAD_RX + 0.045, 0.27, 0.14)
    canvas.lay(canvas.cover(behind) * _has_style(person, "long"), person.hair_rgb * 0.92)
    knot = canvas.ellipse(hx, hy - HEAD_RY - 0.01, 0.085, 0.075)
    canvas.lay(canvas.cover(knot) * _has_style(person, "bun"), person.hair_rgb)
    neck = places["neck"]
    down = _constant((0.0, 0.05), neck.device)
    canvas.lay(canvas.cover(canvas.capsule(neck - 1.6 * down, neck + down, 0.075)), person.skin_rgb * 0.86)
    torso = canvas.rounded_box(neck[..., 0], neck[..., 1] + 0.255, _SHOULDER_X + 0.045, 0.20, 0.09)
    canvas.lay(canvas.cover(torso), person.shirt_rgb)


def _draw_arms(canvas: _Canvas, person: Person, places: dict[str, Tensor]) -> None:
    pad = _rgb(PAD_RGB, person)
    for side in ("right", "left"):
        shoulder, elbow, wrist = (places[f"{side} {name}"] for name in ("shoulder", "elbow", "wrist"))
        canvas.lay(canvas.cover(canvas.capsule(shoulder, elbow, _ARM_HALF)), person.shirt_rgb * 0.88)
        canvas.lay(canvas.cover(canvas.capsule(elbow, wrist, _ARM_HALF * 0.9)), person.shirt_rgb * 0.80)
        canvas.lay(canvas.cover(canvas.ellipse(elbow[..., 0], elbow[..., 1], _PAD, _PAD)), pad)
        canvas.lay(canvas.cover(canvas.ellipse(wrist[..., 0], wrist[..., 1], _HAND, _HAND)), person.skin_rgb)


def _draw_head(canvas: _Canvas, person: Person, hx: Tensor, hy: Tensor) -> None:
    skin, hair = person.skin_rgb, person.hair_rgb
    hood = canvas.ellipse(hx, hy - 0.015, HEAD_RX + 0.022, HEAD_RY + 0.022)  # hair around the head
    canvas.lay(canvas.cover(hood) * canvas.cover(canvas.y - _per_pixel(hy)), hair)
    for sign in (-1, 1):
        canvas.lay(canvas.cover(canvas.ellipse(hx + sign * HEAD_RX, hy + 0.02, 0.03, 0.05)), skin * 0.92)
    face = canvas.ellipse(hx, hy, HEAD_RX, HEAD_RY)
    light = 1.03 - 3.0 * (canvas.x - _per_pixel(hx) + 0.08).clamp(min=0) ** 2  # darker on the right
    shaded = (skin[:, :, None, None, None] * light[:, None]).clamp(0, 1)
    canvas.lay(canvas.cover(face), shaded)
    arc = -canvas.ellipse(hx, hy + 0.06, HEAD_RX * 0.96, HEAD_RY * 0.84)
    straight = canvas.y - _per_pixel(hy) + 0.085
    hair_line = torch.where(_has_style(person, "fringe") > 0.5, straight, arc)  # hair where it is negative
    top = canvas.cover(canvas.ellipse(hx, hy - 0.005, HEAD_RX + 0.012, HEAD_RY + 0.012))
    above = canvas.cover(canvas.y - _per_pixel(hy) + 0.03)
    canvas.lay(top * above * canvas.cover(hair_line), hair)


def _draw_eyes(canvas: _Canvas, person: Person, hx: Tensor, hy: Tensor, is_open: Tensor) -> None:
    white, iris = (_rgb(rgb, person) for rgb in ((0.97, 0.97, 0.97), (0.12, 0.12, 0.17)))
    detailed = _per_pixel(person.detailed[:, None])
    height = 0.004 + 0.030 * _per_pixel(is_open)
    for sign in (-1, 1):
        x, y = hx + sign * EYE_X, hy - EYE_ABOVE
        canvas.lay(canvas.cover(canvas.ellipse(x, y, 0.042, height)) * _per_pixel(is_open) * detailed, white)
        canvas.lay(canvas.cover(canvas.ellipse(x, y, 0.024, height)) * (0.3 + 0.7 * _per_pixel(is_open)), iris)


def _draw_mouth(canvas: _Canvas, person: Person, x: Tensor, y: Tensor, opening: Tensor, width: Tensor) -> None:
    dark, teeth, lips = (_rgb(rgb, person) for rgb in (MOUTH_DARK, _TEETH_RGB, _LIP_RGB))
    detailed = _per_pixel(person.detailed[:, None])
    half_x = 0.5 * _per_pixel(MOUTH_WIDTH[0] + (MOUTH_WIDTH[1] - MOUTH_WIDTH[0]) * width)
    half_y = 0.5 * MOUTH_HEIGHT * _per_pixel(opening)
    rim = 0.013
    outer = canvas.rounded_box(x, y, half_x + rim, half_y + rim, torch.minimum(half_y + rim, half_x))
    canvas.lay(canvas.cover(outer) * detailed, 0.65 * lips + 0.35 * person.skin_rgb)
    inner = canvas.cover(canvas.rounded_box(x, y, half_x, half_y, torch.minimum(half_y, half_x)))
    inner = inner * (half_y * canvas.side).clamp(0, 1)  # fades in over the first pixel of opening
    canvas.lay(inner, dark)
    canvas.lay(inner * canvas.cover(canvas.y - _per_pixel(y) + half_y * 0.5) * detailed, teeth)  # the upper quarter


def draw_pose(person: Person, times: Tensor, *, side: int = SIDE) -> Tensor:
    """The pose videos, limbs in colours on black, RGB in [-1, 1]: `[B, 3, T, side, side]`."""
    places = joints(person, times.expand(len(person), -1))
    canvas = _Canvas(person.skin_rgb * 0, places.shape[1], side)
    for (start, end), rgb in zip(LIMBS, _LIMB_RGB):
        first, last = (places[:, :, JOINTS.index(name)] for name in (start, end))
        canvas.lay(canvas.cover(canvas.capsule(first, last, _LIMB_HALF)), _rgb(rgb, person))
    return canvas.rgb * 2 - 1
