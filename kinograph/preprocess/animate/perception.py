"""What finds people in pictures: one interface, two sets of models behind it.

"mediapipe" runs the models that ship inside the Python package of that name; "published" the detector, pose network and
segmenter of the published preprocessing, from a folder of downloads.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from kinograph.errors import RequestError
from kinograph.preprocess.animate.boxes import Person

SETS = ("mediapipe", "published")


class PersonFinder(Protocol):
    """Frames are uint8 [H, W, 3] RGB."""

    def find(self, frame: np.ndarray) -> list[Person]:
        """All people in a frame."""

    def restart(self) -> None:
        """The next frame to observe does not follow the last one."""

    def observe(self, frame: np.ndarray, person: Person) -> np.ndarray:
        """float64 [133, 3]: the person's whole-body points (x, y in pixels, score); a score of 0 for what was not found."""

    def masks(self, frames: Callable[[], Iterable[np.ndarray]], people: list[Person], points: np.ndarray) -> Iterator[np.ndarray]:
        """bool [H, W] for each frame: where the person is, whose box and points [n, 133, 3] are given. May be empty."""


def load_finder(models: str, process_checkpoint: Path | None, *, masks: bool) -> PersonFinder:
    """The finder of that name, for whole-body points and perhaps `masks`.

    Raises for a missing package or checkpoint.
    """
    if models == "mediapipe":
        from kinograph.preprocess.animate.mediapipe_models import MediapipeFinder

        return MediapipeFinder(masks=masks)
    if models == "published":
        from kinograph.preprocess.animate.onnx_models import PublishedFinder

        return PublishedFinder(checkpoint_folder(process_checkpoint, "the published models"), masks=masks)
    raise RequestError(f"there are no models called {models!r} for preprocessing; choose one of {', '.join(SETS)}")


def checkpoint_folder(folder: Path | None, what: str) -> Path:
    """`folder`, which must have been given."""
    if folder is None:
        raise RequestError(f"{what} need a folder of weights; name the published process_checkpoint folder with --ckpt_path")
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}; name the published process_checkpoint folder with --ckpt_path")
    return folder
