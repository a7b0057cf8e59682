"""The control picture: a skeleton drawn as the animation model was trained to see it.

Limbs are ellipses in darkened colours, joints circles in full colours, fingers thin lines with blue tips and joints. Faces
are not drawn: the face reaches the model as a crop.
"""
from __future__ import annotations

import math

import numpy as np

from kinograph.preprocess.animate.keypoints import LIMBS, Skeleton
from kinograph.preprocess.animate.raster import Colour, draw_line, fill_circle, fill_ellipse

MIN_SCORE = 0.5
_LIMB_SHADE = 0.6
_FINGER_JOINT: Colour = (0, 0, 255)

_WHEEL: tuple[Colour, ...] = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0),
    (0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255),
    (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip
JOINT_COLOURS: tuple[Colour, ...] = (*_WHEEL, (200, 200, 0), (100, 100, 0))
LIMB_COLOURS: tuple[Colour, ...] = tuple(
    (int(r * _LIMB_SHADE), int(g * _LIMB_SHADE), int(b * _LIMB_SHADE)) for r, g, b in (*_WHEEL, (200, 200, 0))
)
FINGER_BONES = tuple((0 if i == 0 else 4 * finger + i, 4 * finger + i + 1) for finger in range(5) for i in range(4))
FINGER_COLOURS: tuple[Colour, ...] = (
    (255, 0, 0), (255, 77, 0), (255, 153, 0), (255, 229, 0), (204, 255, 0), (128, 255, 0), (51, 255, 0),
    (0, 255, 25), (0, 255, 102), (0, 255, 179), (0, 255, 255), (0, 178, 255), (0, 102, 255), (0, 25, 255),
    (51, 0, 255), (128, 0, 255), (204, 0, 255), (255, 0, 230), (255, 0, 153), (255, 0, 77),
)  # fmt: skip


def draw_skeleton(skeleton: Skeleton, *, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3], RGB on black, of a skeleton in pixels. Points scored below 0.5 are left out."""
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    body_width = max(min(width, height) // 200 - 1, 1)
    hand_width = max(body_width // 2, 1)
    _draw_body(canvas, skeleton.body, body_width)
    for hand in (skeleton.left_hand, skeleton.right_hand):
        _draw_hand(canvas, hand, hand_width)
    return canvas


def _draw_body(canvas: np.ndarray, body: np.ndarray, width: int) -> None:
    for (start, end), colour in zip(LIMBS, LIMB_COLOURS):
        if _is_seen(body[start]) and _is_seen(body[end]):
            _draw_limb(canvas, body[start, :2], body[end, :2], width, colour)
    for joint, colour in zip(body, JOINT_COLOURS):
        if _is_seen(joint):
            fill_circle(canvas, (int(joint[0]), int(joint[1])), width, colour)


def _draw_limb(canvas: np.ndarray, start: np.ndarray, end: np.ndarray, width: int, colour: Colour) -> None:
    x, y = ((start + end) / 2).tolist()
    dx, dy = (start - end).tolist()
    degrees = int(math.degrees(math.atan2(dy, dx)))
    fill_ellipse(canvas, (int(x), int(y)), (int(math.hypot(dx, dy) / 2), width), degrees, colour)


def _draw_hand(canvas: np.ndarray, hand: np.ndarray, width: int) -> None:
    # A coordinate of 0 is how the published preprocessing marked fingers it had not found: such points are not drawn.
    points = [(int(x), int(y)) if _is_seen((x, y, score)) and x >= 1 and y >= 1 else None for x, y, score in hand.tolist()]
    for (start, end), colour in zip(FINGER_BONES, FINGER_COLOURS):
        if (a := points[start]) is not None and (b := points[end]) is not None:
            draw_line(canvas, a, b, width, colour)
    for point in points:
        if point is not None:
            fill_circle(canvas, point, width, _FINGER_JOINT)


def _is_seen(point: np.ndarray | tuple[float, float, float]) -> bool:
    return point[2] >= MIN_SCORE and math.isfinite(point[0]) and math.isfinite(point[1])
