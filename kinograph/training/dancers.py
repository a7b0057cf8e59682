"""Dancers: drawn characters that dance on drawn scenes, as the animation model's material, on any device.

A clip is a function of records of `[B]` tensors: who dances (`Character`), how (`Dance`), where (`Stage`). Drawing is signed
distances with soft edges, as in `toybox`. What the model is given is made from the same joints: the control picture is that of
`kinograph.preprocess.animate.skeleton` pixel for pixel (`PoseDrawing`), the face crop shows a driver of another skin colour
with the same expression, the mask covers a driver of another build.

Coordinates are pixels of a square picture of `side` x `side`, x to the right, y down; lengths of a character are pixels of a
picture of 128, and are scaled. `[B, T]` for what changes over time. "Right" is the character's own: left in the picture.

A character has seven colours that are far apart (skin, shirt, trousers, two sleeves, two boots), so that a judge who knows
them finds the joints: the sleeves reach from the elbows to the hands, boots begin at the knees.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kinograph.preprocess.animate import keypoints as kp
from kinograph.preprocess.animate.raster import fill_circle, fill_ellipse
from kinograph.preprocess.animate.skeleton import JOINT_COLOURS, LIMB_COLOURS
from kinograph.training.toybox import BACKGROUND_RGB, COLOR_RGB, COLORS, PATTERNS, draw_background

SPLITS = ("train", "held_out")
ARMS = ("wave", "flap", "alternate", "robot", "hips", "swing")
LEGS = ("sway", "squat", "kick", "wide", "knees")
PARTS = ("skin", "shirt", "trousers", "right sleeve", "left sleeve", "right boot", "left boot")
SKIN, SHIRT, TROUSERS, R_SLEEVE, L_SLEEVE, R_BOOT, L_BOOT = range(7)

_SKINS = ("yellow", "orange")
_ALIKE = (("orange", "yellow"), ("orange", "red"), ("orange", "pink"), ("pink", "red"))  # blur into each other
_TOUCHING = (
    (SKIN, SHIRT), (SKIN, R_SLEEVE), (SKIN, L_SLEEVE), (SHIRT, R_SLEEVE), (SHIRT, L_SLEEVE), (SHIRT, TROUSERS),
    (TROUSERS, R_BOOT), (TROUSERS, L_BOOT),
)  # fmt: skip
_GROUNDS = ("plain", "hills")
_INK = COLOR_RGB[COLORS.index("black")]  # of eyes and mouths

UNIT = 128.0  # the picture that a character's lengths are pixels of
HEAD = 14.0  # usual radius
HAND = 1.2  # radius of a hand over that of a limb
_SOFTNESS = 1.5  # pixels from wholly inside an edge to wholly outside
_LIGHT_CONTRAST = 1.5  # exponent of the background's colour: a character is lit in a deeper tone than a bright wall
_FACE_SCALE = 1.25  # half the side of a face crop over the head's radius
_NUM_BODY = 20


# ----------------------------------------------------------------------------------------------------------- records


class _Rows:
    """Records of tensors with the batch first: rows of them, and copies on other devices."""

    def __len__(self) -> int:
        return next(iter(vars(self).values())).shape[0]

    def __getitem__(self, rows):
        return self._map(lambda value: value[rows])

    def to(self, device: torch.device | str):
        return self._map(lambda value: value.to(device))

    def _map(self, function):
        return replace(self, **{field.name: function(getattr(self, field.name)) for field in fields(self)})  # type: ignore[arg-type, type-var]


@dataclass(frozen=True, kw_only=True)
class Character(_Rows):
    """Build and colours."""

    colours: Tensor  # [B, 7, 3] in [0, 1], by `PARTS`
    scale: Tensor  # [B]: of all lengths
    arm: Tensor  # [B] factors of the usual lengths
    leg: Tensor
    head: Tensor
    limb: Tensor  # [B]: radius of a limb before scaling
    girth: Tensor  # [B]: radius of the trunk before scaling


@dataclass(frozen=True, kw_only=True)
class Dance(_Rows):
    """A dance, as amplitudes and phases; frame 0 is anywhere in it, and it goes on for as long as one likes."""

    arms: Tensor  # [B] index into ARMS
    legs: Tensor  # [B] index into LEGS
    tempo: Tensor  # [B] cycles per frame
    size: Tensor  # [B] factor on amplitudes
    phase: Tensor  # [B, 4] radians: arms, legs, body, face
    place: Tensor  # [B, 2]: x and y of the hips' resting place as fractions of the frame, less its centre
    mood: Tensor  # [B, 2]: mean smile in [-1, 1], mean opening of the mouth in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Stage(_Rows):
    """A scene of `toybox`, without its object."""

    background: Tensor  # [B] index into BACKGROUNDS
    pattern: Tensor  # [B] index into PATTERNS

    @property
    def light(self) -> Tensor:
        """[B, 3], largest channel 1: the colour of the light that shows in the background."""
        colour = torch.tensor(BACKGROUND_RGB, device=self.background.device)[self.background]
        return (colour / colour.amax(dim=1, keepdim=True)) ** _LIGHT_CONTRAST


def is_held_out(arms: int, legs: int) -> bool:
    """Whether training never sees this pair of movements."""
    return (2 * arms + legs) % 5 == 0


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def sample_characters(n: int, generator: torch.Generator) -> Character:
    return Character(
        colours=torch.tensor(COLOR_RGB)[_sample_colours(n, generator)],
        scale=_uniform(n, 0.92, 1.12, generator),
        arm=_uniform(n, 0.92, 1.12, generator),
        leg=_uniform(n, 0.92, 1.10, generator),
        head=_uniform(n, 0.9, 1.1, generator),
        limb=_uniform(n, 3.9, 4.8, generator),
        girth=_uniform(n, 9.0, 11.5, generator),
    )


def _sample_colours(n: int, generator: torch.Generator, tries: int = 512) -> Tensor:
    """int64 [n, 7]: colours of the parts, all different, where none touches one that it would blur into."""
    order = torch.rand(n, tries, len(COLORS), generator=generator).argsort(dim=2)[:, :, : len(PARTS)]
    alike = torch.zeros(len(COLORS), len(COLORS), dtype=torch.bool)
    for a, b in _ALIKE:
        i, j = COLORS.index(a), COLORS.index(b)
        alike[i, j] = alike[j, i] = True
    good = torch.isin(order[..., SKIN], torch.tensor([COLORS.index(name) for name in _SKINS]))
    for part, neighbour in _TOUCHING:
        good &= ~alike[order[..., part], order[..., neighbour]]
    best = good.float().argmax(dim=1)
    return order[torch.arange(n), best]


def sample_dances(n: int, generator: torch.Generator, *, split: str = "train") -> Dance:
    """Dances of `split`: the two share no pair of arm and leg movements."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    pairs = [(a, b) for a in range(len(ARMS)) for b in range(len(LEGS)) if is_held_out(a, b) == (split == "held_out")]
    chosen = torch.tensor(pairs)[torch.randint(len(pairs), (n,), generator=generator)]
    return Dance(
        arms=chosen[:, 0],
        legs=chosen[:, 1],
        tempo=_uniform(n, 0.025, 0.05, generator),
        size=_uniform(n, 0.75, 1.1, generator),
        phase=2 * math.pi * torch.rand(n, 4, generator=generator),
        place=torch.stack([_uniform(n, -0.07, 0.07, generator), _uniform(n, -0.02, 0.03, generator)], dim=1),
        mood=torch.stack([_uniform(n, -0.8, 1.0, generator), _uniform(n, 0.0, 0.6, generator)], dim=1),
    )


def sample_stages(n: int, generator: torch.Generator) -> Stage:
    patterns = torch.tensor([PATTERNS.index(name) for name in _GROUNDS])
    return Stage(
        background=torch.randint(len(BACKGROUND_RGB), (n,), generator=generator),
        pattern=patterns[torch.randint(len(patterns), (n,), generator=generator)],
    )


# ------------------------------------------------------------------------------------------------------------- joints


@dataclass(frozen=True)
class _Angles:
    """Radians, each [B, T, 2] for (right, left): 0 hangs down, positive goes away from the body."""

    shoulder: Tensor
    elbow: Tensor  # bend of the forearm against the upper arm; positive raises it further
    hip: Tensor
    knee: Tensor


def _arm_angles(dance: Dance, time: Tensor) -> tuple[Tensor, Tensor]:
    turn = 2 * math.pi * dance.tempo[:, None] * time + dance.phase[:, :1]
    s, size = torch.sin(turn), dance.size[:, None]
    both, opposite = torch.stack([s, s], -1), torch.stack([s, -s], -1)
    amount = size[..., None]
    shoulders = {
        "wave": 2.25 + 0.25 * amount * both,
        "flap": 1.45 + 0.95 * amount * both,
        "alternate": 1.40 + 0.95 * amount * opposite,
        "robot": 1.50 + 0.10 * amount * opposite,
        "hips": 1.00 + 0.15 * amount * both,
        "swing": 0.75 + 0.45 * amount * opposite,
    }
    elbows = {
        "wave": 0.35 + 0.75 * amount * opposite,
        "flap": 0.20 + 0.0 * both,
        "alternate": 0.25 + 0.25 * amount * opposite,
        "robot": 1.30 * amount * opposite,
        "hips": -1.05 + 0.20 * amount * both,
        "swing": 0.55 + 0.35 * amount * opposite,
    }
    return _chosen(dance.arms, ARMS, shoulders), _chosen(dance.arms, ARMS, elbows)


def _leg_angles(dance: Dance, time: Tensor) -> tuple[Tensor, Tensor]:
    turn = 2 * math.pi * dance.tempo[:, None] * time + dance.phase[:, 1:2]
    s, amount = torch.sin(turn), dance.size[:, None, None]
    both, opposite = torch.stack([s, s], -1), torch.stack([s, -s], -1)
    raised = opposite.clamp(min=0)
    hips = {
        "sway": 0.16 + 0.10 * opposite,
        "squat": 0.15 + 0.45 * amount * (0.5 + 0.5 * both),
        "kick": 0.14 + 0.80 * amount * raised,
        "wide": 0.38 + 0.26 * amount * both,
        "knees": 0.14 + 0.75 * amount * raised,
    }
    knees = {
        "sway": -0.08 + 0.0 * both,
        "squat": -0.20 - 0.60 * amount * (0.5 + 0.5 * both),
        "kick": -0.05 + 0.0 * both,
        "wide": -0.20 + 0.0 * both,
        "knees": -0.10 - 1.05 * amount * raised,
    }
    return _chosen(dance.legs, LEGS, hips), _chosen(dance.legs, LEGS, knees)


def _chosen(index: Tensor, names: tuple[str, ...], values: dict[str, Tensor]) -> Tensor:
    stacked = torch.stack([values[name] for name in names])
    return stacked[index, torch.arange(len(index), device=index.device)]


def joints(character: Character, dance: Dance, times: Tensor, *, side: int) -> Tensor:
    """[B, T, 20, 2]: x, y in pixels of the body joints of `preprocess.animate.keypoints`, at frames `times` [T]."""
    time = times.to(character.scale)[None]
    shoulder, elbow = _arm_angles(dance, time)
    hip, knee = _leg_angles(dance, time)
    unit = (character.scale * side / UNIT)[:, None]
    turn = 2 * math.pi * dance.tempo[:, None] * time + dance.phase[:, 2:3]
    sway = torch.where(dance.legs[:, None] == LEGS.index("sway"), 5.0, 2.0) * torch.sin(turn) * unit
    # The hips sink as far as the straighter leg gets shorter, so that feet stay on the ground.
    thigh, shin = 17.0 * character.leg[:, None], 17.0 * character.leg[:, None]
    reach = (thigh[..., None] * torch.cos(hip) + shin[..., None] * torch.cos(hip + knee)).amax(-1)
    ground = side * (0.5 + dance.place[:, 1:]) + 41.0 * unit
    pelvis_x = side * (0.5 + dance.place[:, :1]) + sway
    pelvis_y = ground - reach * unit
    lean = 0.10 * torch.sin(turn)  # radians of the trunk
    trunk = 27.0 * unit
    neck_x, neck_y = pelvis_x + trunk * torch.sin(lean), pelvis_y - trunk * torch.cos(lean)
    radius = HEAD * character.head[:, None] * unit
    tilt = lean + 0.12 * torch.sin(turn + 1.3)
    head_x, head_y = neck_x + (radius + 3 * unit) * torch.sin(tilt), neck_y - (radius + 3 * unit) * torch.cos(tilt)
    result = torch.zeros(*head_x.shape, _NUM_BODY, 2, device=head_x.device)

    def put(joint: int, x: Tensor, y: Tensor) -> None:
        result[:, :, joint, 0], result[:, :, joint, 1] = x, y

    put(kp.NECK, neck_x, neck_y)
    put(kp.NOSE, head_x, head_y)
    face = ((kp.R_EYE, -0.38, -0.25), (kp.L_EYE, 0.38, -0.25), (kp.R_EAR, -0.95, -0.05), (kp.L_EAR, 0.95, -0.05))
    for joint, right, down in face:
        x = head_x + radius * (right * torch.cos(tilt) - down * torch.sin(tilt))
        put(joint, x, head_y + radius * (right * torch.sin(tilt) + down * torch.cos(tilt)))
    upper, lower = 15.0 * character.arm[:, None] * unit, 15.0 * character.arm[:, None] * unit
    limbs = (
        (0, -1.0, kp.R_SHOULDER, kp.R_ELBOW, kp.R_WRIST, kp.R_HIP, kp.R_KNEE, kp.R_ANKLE, kp.R_TOE),
        (1, 1.0, kp.L_SHOULDER, kp.L_ELBOW, kp.L_WRIST, kp.L_HIP, kp.L_KNEE, kp.L_ANKLE, kp.L_TOE),
    )
    girth = character.girth[:, None] * unit
    for k, sign, j_shoulder, j_elbow, j_wrist, j_hip, j_knee, j_ankle, j_toe in limbs:
        x, y = neck_x + sign * (girth + 0.5 * unit) * torch.cos(lean), neck_y + 2 * unit + sign * girth * torch.sin(lean)
        put(j_shoulder, x, y)
        for joint, length, angle in ((j_elbow, upper, shoulder[..., k]), (j_wrist, lower, shoulder[..., k] + elbow[..., k])):
            x, y = x + sign * length * torch.sin(angle), y + length * torch.cos(angle)
            put(joint, x, y)
        x, y = pelvis_x + sign * 5.5 * unit, pelvis_y
        put(j_hip, x, y)
        for joint, length, angle in ((j_knee, thigh * unit, hip[..., k]), (j_ankle, shin * unit, hip[..., k] + knee[..., k])):
            x, y = x + sign * length * torch.sin(angle), y + length * torch.cos(angle)
            put(joint, x, y)
        put(j_toe, x + sign * 4 * unit, y + 1 * unit)
    return result


def expressions(dance: Dance, times: Tensor) -> Tensor:
    """[B, T, 3]: smile in [-1, 1], opening of the mouth in [0, 1], opening of the eyes in [0, 1]."""
    turn = 2 * math.pi * dance.tempo[:, None] * times.to(dance.tempo)[None] + dance.phase[:, 3:4]
    smile = (dance.mood[:, :1] + 0.35 * torch.sin(turn)).clamp(-1, 1)
    opening = (dance.mood[:, 1:] + 0.45 * torch.sin(2 * turn + 1.0)).clamp(0, 1)
    eyes = 1 - 0.9 * (torch.sin(1.5 * turn + 2.0) > 0.8).float()
    return torch.stack([smile, opening, eyes], dim=-1)


# ------------------------------------------------------------------------------------------------------------ drawing


def _grid(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    pixels = torch.arange(side, dtype=torch.float32, device=device)
    return pixels[None, None, None, :], pixels[None, None, :, None]


def _capsule(x: Tensor, y: Tensor, a: Tensor, b: Tensor, radius: Tensor) -> Tensor:
    """Signed distance in pixels [B, T, H, W] to the points within `radius` [B] of the segment from `a` to `b` [B, T, 2]."""
    ax, ay = a[..., 0, None, None], a[..., 1, None, None]
    dx, dy = b[..., 0, None, None] - ax, b[..., 1, None, None] - ay
    along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy).clamp(min=1e-6)).clamp(0, 1)
    return torch.hypot(x - ax - along * dx, y - ay - along * dy) - radius[:, None, None, None]


def _cover(distance: Tensor) -> Tensor:
    return (0.5 - distance / _SOFTNESS).clamp(0, 1)


def _shapes(character: Character, body: Tensor, *, side: int) -> list[tuple[int, Tensor]]:
    """(part, signed distance [B, T, H, W]) of everything a character is made of, from back to front."""
    x, y = _grid(side, body.device)
    unit = character.scale * side / UNIT
    limb, girth, head = character.limb * unit, character.girth * unit, HEAD * character.head * unit

    def capsule(start: int, end: int, radius: Tensor) -> Tensor:
        return _capsule(x, y, body[:, :, start], body[:, :, end], radius)

    pelvis = (body[:, :, kp.R_HIP] + body[:, :, kp.L_HIP]) / 2
    neck = body[:, :, kp.NECK]
    down = pelvis - neck
    length = down.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    inset = (girth - 2 * unit)[:, None, None] * down / length
    return [
        (TROUSERS, capsule(kp.R_HIP, kp.R_KNEE, limb * 1.15)),
        (TROUSERS, capsule(kp.L_HIP, kp.L_KNEE, limb * 1.15)),
        (R_BOOT, torch.minimum(capsule(kp.R_KNEE, kp.R_ANKLE, limb), capsule(kp.R_ANKLE, kp.R_TOE, limb * 0.9))),
        (L_BOOT, torch.minimum(capsule(kp.L_KNEE, kp.L_ANKLE, limb), capsule(kp.L_ANKLE, kp.L_TOE, limb * 0.9))),
        (SHIRT, _capsule(x, y, neck + inset, pelvis - inset, girth)),
        (SHIRT, torch.minimum(capsule(kp.R_SHOULDER, kp.R_ELBOW, limb), capsule(kp.NECK, kp.R_SHOULDER, limb * 0.9))),
        (SHIRT, torch.minimum(capsule(kp.L_SHOULDER, kp.L_ELBOW, limb), capsule(kp.NECK, kp.L_SHOULDER, limb * 0.9))),
        (SKIN, _capsule(x, y, body[:, :, kp.NOSE], body[:, :, kp.NOSE], head)),
        (R_SLEEVE, capsule(kp.R_ELBOW, kp.R_WRIST, limb)),
        (L_SLEEVE, capsule(kp.L_ELBOW, kp.L_WRIST, limb)),
        (SKIN, capsule(kp.R_WRIST, kp.R_WRIST, limb * HAND)),
        (SKIN, capsule(kp.L_WRIST, kp.L_WRIST, limb * HAND)),
    ]


def _ink(x: Tensor, y: Tensor, centre: Tensor, across: Tensor, radius: Tensor, expression: Tensor) -> Tensor:
    """Coverage [B, T, H, W] of eyes and mouth of a head at `centre` [B, T, 2]; `across` [B, T, 2] points from its right to its left."""
    r = radius[:, None, None, None]
    cos, sin = across[..., 0, None, None], across[..., 1, None, None]
    dx, dy = (x - centre[..., 0, None, None]) / r, (y - centre[..., 1, None, None]) / r
    u, v = dx * cos + dy * sin, dy * cos - dx * sin  # in radii, upright
    smile, opening, eyes = (expression[..., k, None, None] for k in range(3))
    eye_height = 0.06 + 0.18 * eyes
    eye = torch.hypot((u.abs() - 0.40) / 0.19, (v + 0.28) / eye_height)
    eye = (eye - 1) * eye_height * r
    bow = 0.42 + 0.22 * smile * (0.5 - (u / 0.5).square())  # the mouth's middle line
    half = (0.10 + 0.26 * opening) * (1 - (u / 0.55).square()).clamp(min=0).sqrt()
    mouth = torch.maximum((v - bow).abs() - half, u.abs() - 0.52) * r
    return torch.maximum(_cover(eye), _cover(mouth))


def _across(body: Tensor) -> Tensor:
    direction = body[:, :, kp.L_EYE] - body[:, :, kp.R_EYE]
    return direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-6)


def draw_stage(stage: Stage, *, side: int) -> Tensor:
    """[B, 3, side, side] in [0, 1]."""
    return draw_background(stage.background, stage.pattern, height=side, width=side)


def draw_character(
    character: Character, body: Tensor, expression: Tensor, background: Tensor, *, light: Tensor | None = None
) -> Tensor:
    """[B, 3, T, H, W] in [-1, 1]: a character with `body` joints [B, T, 20, 2] before `background` [B, 3, H, W] in [0, 1].

    `light` [B, 3] multiplies the character's colours; None: they are as in `character`.
    """
    side = background.shape[-1]
    colours = character.colours if light is None else character.colours * light[:, None]
    picture = background[:, :, None].expand(-1, -1, body.shape[1], -1, -1)
    x, y = _grid(side, body.device)
    has_face = True  # the first that is skin is the head, the others are hands
    for part, distance in _shapes(character, body, side=side):
        picture = torch.lerp(picture, colours[:, part, :, None, None, None], _cover(distance)[:, None])
        if part == SKIN and has_face:
            has_face = False
            radius = HEAD * character.head * character.scale * side / UNIT
            ink = _ink(x, y, body[:, :, kp.NOSE], _across(body), radius, expression)
            dark = torch.tensor(_INK, device=body.device)[None, :] * (1 if light is None else light)
            picture = torch.lerp(picture, dark.expand(len(body), 3)[:, :, None, None, None], ink[:, None])
    return picture * 2 - 1


def person_mask(character: Character, body: Tensor, *, side: int, margin: float = 0.0, rectangle: bool = False) -> Tensor:
    """[B, T, H, W] of 0 and 1: the character, grown by `margin` pixels; `rectangle`: its bounding box."""
    nearest = torch.stack([distance for _, distance in _shapes(character, body, side=side)]).amin(0)
    mask = (nearest < margin).float()
    return mask.amax(-1, keepdim=True) * mask.amax(-2, keepdim=True) if rectangle else mask


def draw_faces(skin: Tensor, expression: Tensor, *, size: int) -> Tensor:
    """[B, 3, T, size, size] in [-1, 1]: crops of an upright face of `skin` [B, 3] with `expression` [B, T, 3]."""
    batch, frames = expression.shape[:2]
    x, y = _grid(size, skin.device)
    centre = skin.new_full((batch, frames, 2), (size - 1) / 2)
    radius = skin.new_full((batch,), size / 2 / _FACE_SCALE)
    across = torch.tensor([1.0, 0.0], device=skin.device).expand(batch, frames, 2)
    picture = skin.new_full((batch, 3, 1, 1, 1), 0.85).expand(-1, -1, frames, size, size)
    picture = torch.lerp(picture, skin[:, :, None, None, None], _cover(_capsule(x, y, centre, centre, radius))[:, None])
    dark = torch.tensor(_INK, device=skin.device)[None, :, None, None, None]
    return torch.lerp(picture, dark, _ink(x, y, centre, across, radius, expression)[:, None]) * 2 - 1


# ---------------------------------------------------------------------------------------------------- control pictures


@lru_cache(maxsize=4)
def _stencils(half_width: int, longest: int) -> tuple[Tensor, Tensor]:
    """Pixels of every limb of up to `longest` pixels of half length: int16 offsets [longest + 1, 361, P, 2], bool [..., P].

    They are taken from what the product draws: a limb's centre, half length and angle are whole numbers, so its pixels around
    the centre depend on the last two alone.
    """
    import numpy as np

    reach = longest + half_width + 3
    found = {}
    for half in range(longest + 1):
        for degrees in range(-180, 181):
            canvas = np.zeros((2 * reach + 1, 2 * reach + 1, 3), dtype=np.uint8)
            fill_ellipse(canvas, (reach, reach), (half, half_width), degrees, (255, 255, 255))
            rows, columns = np.nonzero(canvas[..., 0])
            found[half, degrees] = np.stack([columns - reach, rows - reach], axis=1)
    most = max(len(pixels) for pixels in found.values())
    offsets = torch.zeros(longest + 1, 361, most, 2, dtype=torch.int16)
    used = torch.zeros(longest + 1, 361, most, dtype=torch.bool)
    for (half, degrees), pixels in found.items():
        offsets[half, degrees + 180, : len(pixels)] = torch.from_numpy(pixels.astype(np.int16))
        used[half, degrees + 180, : len(pixels)] = True
    return offsets, used


class PoseDrawing:
    """The control pictures of `preprocess.animate.skeleton.draw_skeleton` for many frames at once, on any device; no hands."""

    def __init__(self, side: int, device: torch.device | str) -> None:
        import numpy as np

        self.side = side
        self.width = max(side // 200 - 1, 1)
        self.longest = int(0.3 * side)
        offsets, used = _stencils(self.width, self.longest)
        self.offsets, self.used = offsets.to(device), used.to(device)
        canvas = np.zeros((2 * self.width + 3, 2 * self.width + 3, 3), dtype=np.uint8)
        middle = self.width + 1
        fill_circle(canvas, (middle, middle), self.width, (255, 255, 255))
        rows, columns = np.nonzero(canvas[..., 0])
        self.circle = torch.from_numpy(np.stack([columns - middle, rows - middle], axis=1)).to(device)

    def __call__(self, body: Tensor) -> Tensor:
        """uint8 [B, 3, T, side, side] for joints [B, T, 20, 2] in pixels."""
        points = body.flatten(0, 1).double()
        canvas = torch.zeros(len(points), self.side * self.side + 1, 3, dtype=torch.uint8, device=body.device)
        for (start, end), colour in zip(kp.LIMBS, LIMB_COLOURS):
            a, b = points[:, start], points[:, end]
            centre = ((a + b) / 2).trunc().long()
            delta = a - b
            degrees = torch.rad2deg(torch.atan2(delta[:, 1], delta[:, 0])).trunc().long() + 180
            half = (torch.hypot(delta[:, 0], delta[:, 1]) / 2).trunc().long().clamp(max=self.longest)
            self._fill(canvas, centre, self.offsets[half, degrees], self.used[half, degrees], colour)
        everything = torch.ones(len(points), len(self.circle), dtype=torch.bool, device=body.device)
        for joint, colour in enumerate(JOINT_COLOURS):
            self._fill(canvas, points[:, joint].trunc().long(), self.circle.expand(len(points), -1, -1), everything, colour)
        pictures = canvas[:, :-1].unflatten(1, (self.side, self.side)).unflatten(0, body.shape[:2])
        return pictures.permute(0, 4, 1, 2, 3)

    def _fill(self, canvas: Tensor, centre: Tensor, offsets: Tensor, used: Tensor, colour: tuple[int, int, int]) -> None:
        at = centre[:, None] + offsets
        inside = used & (at >= 0).all(-1) & (at < self.side).all(-1)
        index = torch.where(inside, at[..., 1] * self.side + at[..., 0], self.side * self.side)  # the last cell is thrown away
        frame = torch.arange(len(canvas), device=canvas.device)[:, None].expand_as(index)
        canvas[frame, index] = torch.tensor(colour, dtype=torch.uint8, device=canvas.device)


def with_coarse_colour(pictures: Tensor) -> Tensor:
    """[B, 3, T, H, W] with colour at half the resolution, as ordinary video files keep it; brightness stays as it is."""
    weights = pictures.new_tensor((0.299, 0.587, 0.114))[:, None, None, None]
    coarse = F.avg_pool3d(pictures, (1, 2, 2)).repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    return (coarse + ((pictures - coarse) * weights).sum(1, keepdim=True)).clamp(-1, 1)
