"""People found by the published models: a detector and a whole-body pose network in ONNX, and a video segmenter.

Their files are those of the published `process_checkpoint` folder, the segmenter in the layout of transformers.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kinograph.errors import CheckpointError, MissingExtraError
from kinograph.preprocess.animate.boxes import (
    PERSON,
    POSE_SIZE,
    Person,
    decode_detections,
    detector_input,
    pose_crop,
    pose_input,
    suppressed,
)
from kinograph.preprocess.animate.heatmaps import keypoints_from_heatmaps
from kinograph.preprocess.animate.keypoints import NUM_WHOLE_BODY

DETECTOR = "det/yolov10m.onnx"
POSE_NETWORK = "pose2d/vitpose_h_wholebody.onnx"
SEGMENTER = "sam2"
EXTRA = "animate-published"


class PublishedFinder:
    """A `PersonFinder`; every frame is looked at by itself."""

    def __init__(self, folder: Path, *, masks: bool = True) -> None:
        self._detector = open_model(folder / DETECTOR, "the person detector")
        self._pose = open_model(folder / POSE_NETWORK, "the whole-body pose network")
        self._segmenter = None
        if masks:
            from kinograph.preprocess.animate.sam2_masks import Sam2Segmenter

            self._segmenter = Sam2Segmenter(folder / SEGMENTER)

    def find(self, frame: np.ndarray) -> list[Person]:
        height, width = frame.shape[:2]
        boxes, scores, classes = decode_detections(_outcome(self._detector, detector_input(frame)), width=width, height=height)
        boxes, scores = boxes[classes == PERSON], scores[classes == PERSON]
        return [_person(boxes[i], float(scores[i])) for i in suppressed(boxes, scores)]

    def restart(self) -> None:
        """Nothing is remembered from frame to frame."""

    def observe(self, frame: np.ndarray, person: Person) -> np.ndarray:
        crop = pose_crop(person, width=frame.shape[1], height=frame.shape[0])
        heatmaps = _outcome(self._pose, pose_input(frame, crop))
        expected = (1, NUM_WHOLE_BODY, POSE_SIZE[1] // 4, POSE_SIZE[0] // 4)
        if heatmaps.shape != expected:
            raise CheckpointError(
                f"the whole-body pose network returned {list(heatmaps.shape)} and not {list(expected)}: it is another model; "
                f"put the published {POSE_NETWORK} in its place"
            )
        return keypoints_from_heatmaps(heatmaps[0], crop.centre, crop.extent)

    def masks(self, frames: Callable[[], Iterable[np.ndarray]], people: list[Person], points: np.ndarray) -> Iterator[np.ndarray]:
        assert self._segmenter is not None, "the finder was made without masks"
        return self._segmenter.masks(frames(), points)


def open_model(path: Path, what: str) -> Any:
    """An onnxruntime session for a file, or for a folder with `end2end.onnx` in it. Raises CheckpointError, MissingExtraError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("running the published models", "onnxruntime", EXTRA) from error
    file = path / "end2end.onnx" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{what} is missing: there is no {file}; download process_checkpoint of Wan2.2-Animate-14B completely")
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(file), providers=providers)
    except Exception as error:  # onnxruntime has no common base class, and its messages are long
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(f"{file} cannot be opened ({reason}); download it again, with the weight files beside it") from error


def _person(box: np.ndarray, score: float) -> Person:
    x, y, w, h = (float(value) for value in box)
    return Person(x, y, x + w, y + h, score)


def _outcome(session: Any, value: np.ndarray) -> np.ndarray:
    """The first output for a first input; the published files do not promise names."""
    return session.run(None, {session.get_inputs()[0].name: value})[0]
