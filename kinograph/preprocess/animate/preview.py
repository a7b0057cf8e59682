"""A sheet to look at before a long run: poses, faces, background and mask beside the source's frames."""
from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from kinograph.errors import MediaError
from kinograph.media.files import PendingOutput, write_error
from kinograph.media.video import read_frames, read_timeline
from kinograph.preprocess.animate.frames import frames_in_time
from kinograph.preprocess.animate.material import BACKGROUND, DESCRIPTION, FACE, MASK, POSE

NUM_ROWS = 6
TILE_HEIGHT = 180
_TITLE_HEIGHT = 16
_GAP = 4
_COLUMNS = (("pose", POSE), ("face", FACE), ("background", BACKGROUND), ("mask", MASK))


def write_preview(folder: str | os.PathLike[str], path: str | os.PathLike[str], *, rows: int = NUM_ROWS) -> Path:
    """Write a picture of `rows` moments of the material in `folder`: a column for each of its videos, and for the source's.

    The source is left out if it is no longer where it was. Raises MediaError for a folder without material.
    """
    folder, path = Path(folder), Path(path)
    description = _description(folder)
    total = description["num_frames"]
    moments = np.unique(np.linspace(0, total - 1, min(rows, total)).round().astype(int)).tolist()
    columns = {title: list(read_frames(folder / name, moments)) for title, name in _COLUMNS if (folder / name).exists()}
    source = Path(description["video"])
    if source.is_file():
        columns = {"source": _source_frames(source, description["fps"], moments), **columns}
    sheet = _sheet(columns, moments, description["fps"])
    pending = PendingOutput(path)
    try:
        sheet.save(pending.partial)
        return pending.commit(overwrite=True)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        pending.discard()


def _description(folder: Path) -> dict:
    try:
        return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MediaError(f"{folder} has no readable {DESCRIPTION}; prepare the material first: kinograph preprocess --help") from error


def _source_frames(path: Path, fps: float, moments: list[int]) -> list[np.ndarray]:
    timeline = read_timeline(path)
    indices, _ = frames_in_time(timeline.times, timeline.end, timeline.fps, fps)
    return list(read_frames(path, [indices[min(i, len(indices) - 1)] for i in moments]))


def _sheet(columns: dict[str, list[np.ndarray]], moments: list[int], fps: float) -> Image.Image:
    tiles = {title: [_tile(frame) for frame in frames] for title, frames in columns.items()}
    widths = {title: column[0].width for title, column in tiles.items()}
    size = (sum(widths.values()) + _GAP * (len(widths) + 1), (TILE_HEIGHT + _TITLE_HEIGHT + _GAP) * len(moments))
    sheet = Image.new("RGB", size, (40, 40, 40))
    draw = ImageDraw.Draw(sheet)
    for row, moment in enumerate(moments):
        left, top = _GAP, row * (TILE_HEIGHT + _TITLE_HEIGHT + _GAP)
        for title, column in tiles.items():
            draw.text((left + 2, top + 2), f"{title}, {moment / fps:.2f} s", fill=(255, 255, 255))
            sheet.paste(column[row], (left, top + _TITLE_HEIGHT))
            left += widths[title] + _GAP
    return sheet


def _tile(frame: np.ndarray) -> Image.Image:
    height, width = frame.shape[:2]
    return Image.fromarray(frame).resize((max(round(width * TILE_HEIGHT / height), 1), TILE_HEIGHT), Image.Resampling.BOX)
