"""From a detector's output to a person's box, from a box to the pose network's input, from face points to a face crop.

Frames are uint8 [H, W, 3] RGB. A box is (x1, y1, x2, y2) in pixels of the frame, the second corner outside.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from kinograph.media.letterbox import resize_linear

DETECTOR_SIZE = 640
PERSON = 0  # class of the detector
MIN_SCORE = 0.05
MAX_OVERLAP = 0.5
SIDE_RATIO = 0.4  # a box whose longer side is under this share of the best one's does not replace it

POSE_SIZE = (192, 256)  # width, height
POSE_MARGIN = 1.25
MIN_SIDE = 10  # smaller boxes are not believed
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], dtype=np.float32)

FACE_SIZE = 512
FACE_AREA = 1.3  # of the crop, to that of the box around the points


class Person(NamedTuple):
    """A person's box. A score of -1 says that nobody was found and the box is the whole frame."""

    x1: float
    y1: float
    x2: float
    y2: float
    score: float


class Crop(NamedTuple):
    """The part of a frame that the pose network sees."""

    centre: tuple[float, float]  # x, y
    extent: tuple[float, float]  # width, height


# ------------------------------------------------------------------------------------------------------ detector


def detector_input(frame: np.ndarray) -> np.ndarray:
    """float32 [1, 3, 640, 640] in 0..1, the frame squeezed to a square."""
    picture = resize_linear(torch.from_numpy(frame), DETECTOR_SIZE, DETECTOR_SIZE).numpy().round() / 255
    return picture.transpose(2, 0, 1)[None].astype(np.float32)


def largest_person(output: np.ndarray, *, width: int, height: int, per_class: bool = False) -> Person:
    """The largest person in the detector's output for a frame of `width` x `height`.

    `output`: rows (x1, y1, x2, y2, score, class) [n, 6], or [4 + classes, n] with (centre x, centre y, width, height) and the
    scores of the classes, in pixels of the detector's input; a leading batch axis of 1 is allowed. The published rule lets a
    better box of any class push a person's out; with `per_class` only persons compete.
    """
    boxes, scores, classes = decode_detections(output, width=width, height=height)
    if per_class:
        boxes, scores, classes = (values[classes == PERSON] for values in (boxes, scores, classes))
    kept = [i for i in suppressed(boxes, scores) if classes[i] == PERSON]
    if not kept:
        return Person(0.0, 0.0, float(width), float(height), -1.0)
    best, best_area = None, 0
    longest = max(boxes[kept][:, 2:].max(axis=1))
    for i in kept:
        area, side = boxes[i, 2] * boxes[i, 3], boxes[i, 2:].max()
        if area > best_area and side >= SIDE_RATIO * longest:
            best, best_area, longest = i, area, side
    if best is None:
        return Person(0.0, 0.0, float(width), float(height), -1.0)
    x, y, w, h = boxes[best].tolist()
    return Person(float(x), float(y), float(x + w), float(y + h), float(scores[best]))


def decode_detections(output: np.ndarray, *, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(int boxes [n, 4] as (x, y, width, height) in the frame, scores [n], classes [n]) of what is not far below belief."""
    rows = output[0] if output.ndim == 3 else output
    if rows.shape[-1] == 6:
        corners, scores, classes = rows[:, :4], rows[:, 4], rows[:, 5].astype(int)
    else:
        centres, sizes, by_class = rows[:2].T, rows[2:4].T, rows[4:]
        corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
        scores, classes = by_class.max(axis=0), by_class.argmax(axis=0)
    sure = scores >= MIN_SCORE
    corners = corners[sure].astype(np.float64) * np.array([width, height, width, height]) / DETECTOR_SIZE
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return boxes.astype(int), scores[sure], classes[sure]


def suppressed(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Indices of the boxes (x, y, width, height) [n, 4] that no better one overlaps by more than half, best first."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if scores[i] > MIN_SCORE and all(overlap(boxes[i], boxes[j]) <= MAX_OVERLAP for j in kept):
            kept.append(i)
    return kept


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (x, y, width, height)."""
    shared = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    common = float(shared.clip(min=0).prod())
    return common / max(float(a[2:].prod() + b[2:].prod()) - common, 1e-9)


# -------------------------------------------------------------------------------------------------- pose network


def pose_crop(person: Person, *, width: int, height: int) -> Crop:
    """The crop around a person, in the aspect of the pose network; around the whole frame if there is nobody to believe in."""
    x1, y1, x2, y2, score = person
    if score <= 0 or x2 - x1 < MIN_SIDE or y2 - y1 < MIN_SIDE:
        x1, y1, x2, y2 = 0, 0, width, height
    aspect = POSE_SIZE[1] / POSE_SIZE[0]
    side = max((x2 - x1) * aspect, y2 - y1) * POSE_MARGIN
    return Crop(((x1 + x2) / 2, (y1 + y2) / 2), (side / aspect, side))


def pose_input(frame: np.ndarray, crop: Crop, *, swap_channels: bool = True) -> np.ndarray:
    """float32 [1, 3, 256, 192], standardised; black where the crop leaves the frame.

    The published preprocessing gives the network blue where it expects red: `swap_channels` follows it.
    """
    (x, y), (w, h) = crop
    left, right, top, bottom = (round(edge) for edge in (x - w / 2, x + w / 2, y - h / 2, y + h / 2))
    picture = _cut(frame, left, top, max(right, left + 1), max(bottom, top + 1))
    picture = resize_linear(torch.from_numpy(picture), *POSE_SIZE).numpy() / np.float32(255)
    if swap_channels:
        picture = picture[:, :, ::-1]
    return ((picture - _MEAN) / _DEVIATION).transpose(2, 0, 1)[None]


def _cut(frame: np.ndarray, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """A part of a frame that may reach beyond it, into black."""
    result = np.zeros((bottom - top, right - left, frame.shape[2]), dtype=frame.dtype)
    height, width = frame.shape[:2]
    x1, x2, y1, y2 = max(left, 0), min(right, width), max(top, 0), min(bottom, height)
    if x1 < x2 and y1 < y2:
        result[y1 - top : y2 - top, x1 - left : x2 - left] = frame[y1:y2, x1:x2]
    return result


# ---------------------------------------------------------------------------------------------------------- face


def face_box(points: np.ndarray, *, width: int, height: int) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) around the face points [68, 2 or more] in pixels, with room for the forehead, within the frame.

    The box is empty (x1 = x2 or y1 = y2) where the face lies outside the frame.
    """
    (x1, y1), (x2, y2) = points[:, :2].min(axis=0).tolist(), points[:, :2].max(axis=0).tolist()
    wider, higher = ((math.sqrt(FACE_AREA) - 1) * side for side in (x2 - x1, y2 - y1))
    left, right = x1 - wider / 2, x2 + wider / 2
    top, bottom = y1 - 3 * higher / 4, y2 + higher / 4
    return (
        int(min(max(left, 0), width)),
        int(min(max(top, 0), height)),
        int(min(max(right, 0), width)),
        int(min(max(bottom, 0), height)),
    )


def crop_face(frame: np.ndarray, box: tuple[int, int, int, int], *, size: int = FACE_SIZE) -> np.ndarray:
    """uint8 [size, size, 3]: the part of the frame in `box`, squeezed to a square; black, the model's "no face", if it is empty."""
    x1, y1, x2, y2 = box
    if x1 >= x2 or y1 >= y2:
        return np.zeros((size, size, 3), dtype=np.uint8)
    part = torch.from_numpy(np.ascontiguousarray(frame[y1:y2, x1:x2]))
    return resize_linear(part, size, size).round_().to(torch.uint8).numpy()
