"""People found by the models that ship inside the package mediapipe: nothing is downloaded.

Faces and bodies are detected in the whole frame. The landmarks of one person (33 of the body, 468 of the face, 21 of each
hand) are then found in a part of the frame around that person, where they are far more reliable than in the whole.
"""
from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kinograph.errors import MissingExtraError
from kinograph.preprocess.animate.boxes import Person, suppressed
from kinograph.preprocess.animate.keypoints import FACE, LEFT_HAND, NUM_WHOLE_BODY, RIGHT_HAND

# Landmarks of the body (L and R are the person's own), for whole-body points 0 to 22.
BODY_LANDMARKS = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28, 31, 31, 29, 32, 32, 30)
# Vertices of the face mesh, for the 68 face points: jaw, brows, nose, eyes, lips outside, lips inside.
FACE_VERTICES = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301,
    168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip
FOUND = 1.0  # score of points of a face or hand that was found: their models say yes or no

MIN_FACE_SCORE = 0.4
MIN_BODY_SCORE = 0.5
REGION_MARGIN = 0.2  # of a side, around what is to be seen
REGION_SLACK = 2.5  # a region may be this much larger than needed before it is made anew
REGION_PIXELS = 640  # longer side of what the landmark models are given
SEGMENT_PIXELS = 256
_SEEN = 0.5
_BODY_DETECTOR = """
input_stream: "image"
output_stream: "detections"
node { calculator: "PoseDetectionCpu" input_stream: "IMAGE:image" output_stream: "DETECTIONS:detections" }
"""

Region = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the frame


class Outline(NamedTuple):
    """What the landmark model takes for the body, in a part of the frame."""

    region: Region
    likely: np.ndarray | None  # uint8 [h, w], 255 for certain; None where it found nobody


class MediapipeFinder:
    """A `PersonFinder`. Frames of one video are observed in order: the landmark models look where they found things last."""

    def __init__(self, *, masks: bool = True) -> None:
        """Without `masks` some time is saved, and `masks` may not be called."""
        try:
            os.environ.setdefault("GLOG_minloglevel", "2")  # its native part prints a page at start
            import cv2
            from google.protobuf import text_format
            from mediapipe.framework import calculator_pb2
            from mediapipe.python import solutions
            from mediapipe.python.solution_base import SolutionBase
        except ImportError as error:
            raise MissingExtraError("finding people in pictures", "mediapipe", "animate") from error
        self._cv2, self._solutions = cv2, solutions
        self._faces = solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=MIN_FACE_SCORE)
        graph = text_format.Parse(_BODY_DETECTOR, calculator_pb2.CalculatorGraphConfig())
        self._bodies = SolutionBase(graph_config=graph, outputs=["detections"])
        self._landmarks = solutions.holistic.Holistic(smooth_landmarks=False, enable_segmentation=masks)
        self._segmenter = solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)
        self._region: Region | None = None
        self._last: np.ndarray | None = None  # box around what was seen in the last frame
        self._outlines: list[Outline] = []  # of the frames observed since the restart

    def find(self, frame: np.ndarray) -> list[Person]:
        """All people; where the whole frame shows none, in squares of it, in which small people are larger."""
        people = self._find(frame)
        if people:
            return people
        for x, y, side in squares(frame.shape[1], frame.shape[0]):
            part = self._find(frame[y : y + side, x : x + side])
            people += [Person(b.x1 + x, b.y1 + y, b.x2 + x, b.y2 + y, b.score) for b in part]
        return apart(people)

    def _find(self, frame: np.ndarray) -> list[Person]:
        height, width = frame.shape[:2]
        small = self._shrunk(frame, REGION_PIXELS)
        faces = self._faces.process(small).detections or []
        bodies = self._bodies.process({"image": small}).detections or []
        people = [around_face(*_face_box(face, width, height), float(face.score[0]), width, height) for face in faces]
        centres = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in (_face_box(face, width, height) for face in faces)]
        for body in bodies:
            points = [(point.x * width, point.y * height) for point in body.location_data.relative_keypoints]
            box = around_body(points, float(body.score[0]), width, height)
            # Faces are the surer sign; a body that has one is that person again.
            if body.score[0] >= MIN_BODY_SCORE and not any(has_face(points, centre) for centre in centres):
                people.append(box)
        return people

    def restart(self) -> None:
        self._landmarks.reset()
        self._region = self._last = None
        self._outlines = []

    def observe(self, frame: np.ndarray, person: Person) -> np.ndarray:
        height, width = frame.shape[:2]
        wanted = united(np.array(person[:4]), self._last)
        if self._region is None or not still_fits(self._region, wanted):
            self._region = region_around(wanted, width, height)
            self._landmarks.reset()
        x1, y1, x2, y2 = self._region
        result = self._landmarks.process(self._shrunk(frame[y1:y2, x1:x2], REGION_PIXELS))
        self._outlines.append(Outline(self._region, self._small_map(result.segmentation_mask)))
        points = whole_body(
            rows(result.pose_landmarks), rows(result.face_landmarks), rows(result.left_hand_landmarks), rows(result.right_hand_landmarks)
        )
        points[:, :2] = points[:, :2] * (x2 - x1, y2 - y1) + (x1, y1)
        outside = ((points[:, :2] < 0) | (points[:, :2] >= (width, height))).any(axis=1)
        points[outside, 2] = 0
        self._last = box_of(points)
        return points

    def masks(self, frames: Callable[[], Iterable[np.ndarray]], people: list[Person], points: np.ndarray) -> Iterator[np.ndarray]:
        for frame, person, here, outline in zip(frames(), people, points, self._outlines):
            yield self._mask(frame, person, here, outline)

    def _mask(self, frame: np.ndarray, person: Person, points: np.ndarray, outline: Outline) -> np.ndarray:
        """The mean of two models decides: one of whoever is in the picture, one of the body whose landmarks were found."""
        height, width = frame.shape[:2]
        x1, y1, x2, y2 = region_around(united(np.array(person[:4]), box_of(points)), width, height)
        likely = self._segmenter.process(self._shrunk(frame[y1:y2, x1:x2], SEGMENT_PIXELS)).segmentation_mask
        likely = self._cv2.resize(likely, (x2 - x1, y2 - y1), interpolation=self._cv2.INTER_LINEAR)
        if outline.likely is not None:
            body = np.zeros((height, width), dtype=np.float32)
            left, top, right, bottom = outline.region
            body[top:bottom, left:right] = self._cv2.resize(outline.likely, (right - left, bottom - top)) / np.float32(255)
            likely = (likely + body[y1:y2, x1:x2]) / 2
        mask = np.zeros((height, width), dtype=bool)
        mask[y1:y2, x1:x2] = self._of_person(likely > 0.5, points - np.array([x1, y1, 0]))
        return mask

    def _small_map(self, likely: np.ndarray | None) -> np.ndarray | None:
        """uint8, small enough to be kept for every frame."""
        return None if likely is None else (self._shrunk(likely, SEGMENT_PIXELS) * 255).round().astype(np.uint8)

    def _of_person(self, mask: np.ndarray, points: np.ndarray) -> np.ndarray:
        """The connected parts of the mask that hold a point of the person; the largest one if none does."""
        count, labels, stats, _ = self._cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        if count <= 2:
            return mask
        x, y = points[points[:, 2] >= _SEEN, :2].astype(int).T
        inside = (x >= 0) & (x < mask.shape[1]) & (y >= 0) & (y < mask.shape[0])
        own = set(labels[y[inside], x[inside]].tolist()) - {0}
        return np.isin(labels, sorted(own or {1 + int(stats[1:, self._cv2.CC_STAT_AREA].argmax())}))

    def _shrunk(self, picture: np.ndarray, longest: int) -> np.ndarray:
        height, width = picture.shape[:2]
        scale = longest / max(height, width)
        if scale >= 1:
            return np.ascontiguousarray(picture)
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        # Averaging would take longer than a model does, and the models' own resizing is linear too.
        return self._cv2.resize(picture, size, interpolation=self._cv2.INTER_LINEAR if scale > 0.3 else self._cv2.INTER_AREA)


# ------------------------------------------------------------------------------------------------------- landmarks


def rows(landmarks: Any) -> np.ndarray | None:
    """[n, 3]: (x, y, visibility) in fractions of the picture; None where nothing was found."""
    if landmarks is None:
        return None
    return np.array([(point.x, point.y, point.visibility) for point in landmarks.landmark], dtype=np.float64)


def whole_body(body: np.ndarray | None, face: np.ndarray | None, left: np.ndarray | None, right: np.ndarray | None) -> np.ndarray:
    """float64 [133, 3] for landmarks (x, y, visibility) of the body [33], face mesh [468] and hands [21]; 0 where there are none."""
    points = np.zeros((NUM_WHOLE_BODY, 3))
    if body is not None:
        points[: len(BODY_LANDMARKS)] = body[list(BODY_LANDMARKS)]
    for part, found in ((FACE, None if face is None else face[list(FACE_VERTICES)]), (LEFT_HAND, left), (RIGHT_HAND, right)):
        if found is not None:
            points[part, :2] = found[:, :2]
            points[part, 2] = FOUND
    return points


# --------------------------------------------------------------------------------------------------- boxes, regions


def around_face(x1: float, y1: float, x2: float, y2: float, score: float, width: int, height: int) -> Person:
    """The box of a person whose face (brows to chin) is in the given one: three faces to each side, eight down."""
    across, down, middle = x2 - x1, y2 - y1, (x1 + x2) / 2
    return Person(
        max(middle - 3 * across, 0.0), max(y1 - down, 0.0), min(middle + 3 * across, float(width)), min(y2 + 7 * down, float(height)), score
    )


def around_body(points: list[tuple[float, float]], score: float, width: int, height: int) -> Person:
    """The box of a person by the detector's points in pixels: the hips, and one that is as far from them as head and feet."""
    (x, y), end = points[0], points[1]
    radius = math.dist((x, y), end)
    return Person(
        max(x - 0.7 * radius, 0.0), max(y - radius, 0.0), min(x + 0.7 * radius, float(width)), min(y + radius, float(height)), score
    )


def has_face(points: list[tuple[float, float]], face: tuple[float, float]) -> bool:
    """Whether a face's centre is where the head of a detected body is: near the middle of the shoulders, its third point."""
    return math.dist(points[2], face) < 0.6 * math.dist(points[0], points[1])


def _face_box(face: Any, width: int, height: int) -> tuple[float, float, float, float]:
    box = face.location_data.relative_bounding_box
    return box.xmin * width, box.ymin * height, (box.xmin + box.width) * width, (box.ymin + box.height) * height


def squares(width: int, height: int) -> list[tuple[int, int, int]]:
    """(x, y, side) of squares that cover a frame: three along the longer side, of the shorter one's length or three fifths of it."""
    side = min(width, height) if max(width, height) > 1.2 * min(width, height) else round(0.6 * min(width, height))
    xs = sorted({0, (width - side) // 2, width - side})
    ys = sorted({0, (height - side) // 2, height - side})
    return [(x, y, side) for y in ys for x in xs]


def apart(people: list[Person]) -> list[Person]:
    """The people without those that overlap a surer one by more than half: parts of a frame overlap too."""
    boxes = np.array([(p.x1, p.y1, p.x2 - p.x1, p.y2 - p.y1) for p in people]).reshape(-1, 4)
    return [people[i] for i in suppressed(boxes, np.array([p.score for p in people]))]


def box_of(points: np.ndarray) -> np.ndarray | None:
    """[4]: x1, y1, x2, y2 around the points that are seen."""
    seen = points[points[:, 2] >= _SEEN, :2]
    return np.concatenate([seen.min(axis=0), seen.max(axis=0)]) if len(seen) else None


def united(box: np.ndarray, other: np.ndarray | None) -> np.ndarray:
    if other is None:
        return box
    return np.concatenate([np.minimum(box[:2], other[:2]), np.maximum(box[2:], other[2:])])


def region_around(box: np.ndarray, width: int, height: int) -> Region:
    """A box with some room, in whole pixels within the frame, at least two wide and high."""
    room = REGION_MARGIN * (box[2:] - box[:2])
    (x1, y1), (x2, y2) = np.floor(box[:2] - room), np.ceil(box[2:] + room)
    x1, y1 = int(np.clip(x1, 0, width - 2)), int(np.clip(y1, 0, height - 2))
    return x1, y1, int(np.clip(x2, x1 + 2, width)), int(np.clip(y2, y1 + 2, height))


def still_fits(region: Region, wanted: np.ndarray) -> bool:
    """Whether a region holds a box, and is not much too large for it."""
    x1, y1, x2, y2 = region
    inside = x1 <= wanted[0] and y1 <= wanted[1] and x2 >= wanted[2] and y2 >= wanted[3]
    needed = float((wanted[2:] - wanted[:2]).prod()) * (1 + 2 * REGION_MARGIN) ** 2
    return bool(inside) and (x2 - x1) * (y2 - y1) <= REGION_SLACK * needed
