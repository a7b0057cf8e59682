"""The folder of control material: its files, written together or not at all."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from kinograph.errors import MediaError, RequestError
from kinograph.media.encoders import VideoFile
from kinograph.media.files import PendingOutput, check_folder_writable, write_error

POSE, FACE, BACKGROUND, MASK = "src_pose.mp4", "src_face.mp4", "src_bg.mp4", "src_mask.mp4"
REFERENCE, SOUND, DESCRIPTION, PREVIEW = "src_ref.png", "src_sound.m4a", "material.json", "preview.png"
EDITED_REFERENCE, EDITED_SOURCE = "refer_edit.png", "tpl_edit.png"
NAMES = (POSE, FACE, BACKGROUND, MASK, REFERENCE, SOUND, DESCRIPTION, PREVIEW, EDITED_REFERENCE, EDITED_SOURCE)

# Thin coloured lines and hard edges must survive; what these add in size is small beside a video that is made from them.
_QUALITY = {POSE: "6", MASK: "6", FACE: "10", BACKGROUND: "10"}  # x264's constant rate factor
_PRESETS = {POSE: "superfast", MASK: "superfast", FACE: "ultrafast", BACKGROUND: "ultrafast"}


@dataclass(frozen=True, kw_only=True)
class Material:
    """What was prepared, as `material.json` has it, and where it lies."""

    folder: Path
    video: str  # the source's path
    mode: str  # "animate" or "replace"
    fps: float
    num_frames: int
    width: int
    height: int
    sound: str | None  # file name
    models: str
    frames_without_person: int  # that took their neighbours'
    frames_without_face: int
    frames_with_empty_mask: int | None  # None: no masks
    kept_limbs: tuple[str, ...] | None  # limbs that retargeting could not measure; None: not retargeted
    failed_limbs: dict[str, int] | None  # in how many frames a limb kept the plain scaled pose; None: not retargeted
    hands_left_out: dict[str, int] | None  # in how many frames a hand was too far from its wrist; None: not retargeted
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        facts = {name: value for name, value in asdict(self).items() if name != "folder"}
        return json.dumps(facts, indent=2, ensure_ascii=False)


def check_target(folder: Path) -> None:
    """Raise unless `folder` can be written, and holds nothing but earlier material."""
    if folder.is_dir():
        strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in NAMES)
        if strangers:
            raise RequestError(f"{folder} holds other files than material ({strangers[0]}); choose a folder of its own")
    elif os.path.lexists(folder):
        raise MediaError(f"{folder} is a file; name a folder")
    check_folder_writable(folder.parent)


@contextmanager
def pending_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when the block ends well and vanishes otherwise."""
    pending = PendingOutput(folder)
    try:
        pending.partial.mkdir(parents=True)
        yield pending.partial
        if folder.is_dir():
            old = PendingOutput(folder).partial
            os.replace(folder, old)
            shutil.rmtree(old, ignore_errors=True)
        pending.commit(overwrite=True)
    except (OSError, av.error.FFmpegError) as error:
        raise write_error(folder, error) from error
    finally:
        pending.discard()


class ControlVideos:
    """The videos of a folder, written side by side, a frame of each at a time."""

    def __init__(self, folder: Path, fps: float, names: tuple[str, ...]) -> None:
        self._folder, self._fps, self._names = folder, fps, names

    def __enter__(self) -> ControlVideos:
        with ExitStack() as stack:
            self._files = {}
            for name in self._names:
                quality = {"crf": _QUALITY[name], "preset": _PRESETS[name]}
                file = VideoFile(self._folder / name, suffix=".mp4", fps=self._fps, text=None, quality=quality)
                stack.callback(file.abandon)
                self._files[name] = file
            self._abandon = stack.pop_all()
        return self

    def add(self, frames: dict[str, np.ndarray]) -> None:
        """Append one uint8 [H, W, 3] to each video."""
        for name, file in self._files.items():
            file.add(frames[name][None])

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            for file in self._files.values():
                file.finish()
        self._abandon.close()


def save_picture(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, format="PNG")
