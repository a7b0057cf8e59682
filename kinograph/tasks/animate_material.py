"""The folder that the animation model is driven by: what must be in it, checked from headers, before any weight is read.

    src_pose     the drawn skeleton, at the size of the video to be made       src_ref.png   the character
    src_face     the driving face, a square of the size the model takes, or of a whole multiple of it
    src_bg       for replacement: the scene with the person cut out            src_mask      for replacement: white on the person

Videos are `.mkv` (lossless) or `.mp4` (as published); where both are there, the lossless one counts. `material.json`, which is
not of the published format, may add the frame rate and the source's sound: {"fps": 25.0, "sound": "src_sound.m4a"}.
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from kinograph.errors import MediaError
from kinograph.media import VideoInfo, count_frames, probe, read_image

POSE, FACE, BACKGROUND, MASK = "src_pose", "src_face", "src_bg", "src_mask"
REFERENCE = "src_ref.png"
RECORD = "material.json"
SUFFIXES = (".mkv", ".mp4")


@dataclass(frozen=True, kw_only=True)
class Material:
    """A folder that was found to be complete; sizes in pixels."""

    pose: Path
    face: Path
    reference: Path
    background: Path | None  # None: everything is generated
    mask: Path | None
    width: int
    height: int
    num_frames: int
    fps: float
    sound: Path | None  # of the source, where it is known


def find_material(folder: str | Path, *, replace: bool, face_size: int, size_multiple: tuple[int, int]) -> Material:
    """The material in `folder`, with what replacement needs if `replace`. `size_multiple`: of (height, width).

    Raises MediaError for a file that is missing, unreadable, of another size or of another length than the rest.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise MediaError(f"the material folder {folder} {what}; make it with: {_command(folder, replace)}")
    files = _videos(folder, replace=replace)
    infos = {name: probe(path) for name, path in files.items()}
    pose = infos[POSE]
    _check_sizes(files, infos, face_size=face_size, size_multiple=size_multiple)
    num_frames = _common_length(files, folder, replace=replace)
    read_image(folder / REFERENCE)
    fps, sound = _record(folder)
    return Material(
        pose=files[POSE],
        face=files[FACE],
        reference=folder / REFERENCE,
        background=files.get(BACKGROUND),
        mask=files.get(MASK),
        width=pose.width,
        height=pose.height,
        num_frames=num_frames,
        fps=pose.fps if fps is None else fps,
        sound=sound,
    )


def _command(folder: Path, replace: bool) -> str:
    flag = " --replace_flag" if replace else ""
    return f"kinograph preprocess --video_path VIDEO --refer_path PICTURE --save_path {folder}{flag}"


def _videos(folder: Path, *, replace: bool) -> dict[str, Path]:
    names = (POSE, FACE, BACKGROUND, MASK) if replace else (POSE, FACE)
    found = {name: path for name in names for path in _candidates(folder, name)[:1]}
    missing = [f"{name}.mp4" for name in names if name not in found]
    if not (folder / REFERENCE).is_file():
        missing.append(REFERENCE)
    if missing:
        purpose = "replacement" if replace else "animation"
        raise MediaError(f"{folder} lacks {' and '.join(missing)}, which {purpose} needs; make them with: {_command(folder, replace)}")
    return found


def _candidates(folder: Path, name: str) -> list[Path]:
    return [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]


def _check_sizes(files: dict[str, Path], infos: dict[str, VideoInfo], *, face_size: int, size_multiple: tuple[int, int]) -> None:
    pose, face = infos[POSE], infos[FACE]
    rows, columns = size_multiple
    if pose.width % columns or pose.height % rows:
        raise MediaError(
            f"{files[POSE]} is {pose.width}*{pose.height}; the model needs a width that is a multiple of {columns} and a height that is "
            f"a multiple of {rows}: preprocess the video again"
        )
    if face.width != face.height or face.width % face_size:
        raise MediaError(
            f"{files[FACE]} is {face.width}*{face.height}; the model needs {face_size}*{face_size}, or a whole multiple of it: "
            "preprocess the video again"
        )
    for name in infos.keys() - {POSE, FACE}:
        info = infos[name]
        if (info.width, info.height) != (pose.width, pose.height):
            raise MediaError(
                f"{files[name]} is {info.width}*{info.height} and {files[POSE].name} {pose.width}*{pose.height}; "
                "they must be of one size: preprocess the video again"
            )


def _common_length(files: dict[str, Path], folder: Path, *, replace: bool) -> int:
    lengths = {path.name: count_frames(path) for path in files.values()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise MediaError(f"the videos of {folder} differ in length ({listed} frames); make them again with: {_command(folder, replace)}")
    return next(iter(lengths.values()))


def _record(folder: Path) -> tuple[float | None, Path | None]:
    """(frames per second, sound) of the source, as far as they are recorded."""
    path = folder / RECORD
    if not path.is_file():
        return None, None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        fps, sound = record.get("fps"), record.get("sound")
        fps = None if fps is None else float(fps)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise MediaError(f"{path} is damaged ({error}); delete it, or preprocess the video again") from error
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise MediaError(f"{path} has {fps} frames per second; it must be above 0: correct or delete it")
    if sound is not None and not (folder / sound).is_file():
        raise MediaError(f"{path} names the sound {sound}, which is not there; put it back, or preprocess the video again")
    return fps, None if sound is None else folder / sound
