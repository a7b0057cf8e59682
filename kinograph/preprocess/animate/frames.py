"""Which frames of the driving video are used, and at what size."""
from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import torch

from kinograph.errors import RequestError
from kinograph.media.letterbox import letterbox

EVEN_TOLERANCE = 0.1  # of a frame, by which a steady video may be off
COUNT_TOLERANCE = 0.1  # by which the frame count of a file may differ from its duration before the duration is believed


def believable_count(num_frames: int, duration: float, fps: float) -> int:
    """The number of frames of a video whose header says `num_frames` and whose last frame ends at `duration` seconds."""
    by_duration = int(duration * fps + 0.5)
    return by_duration if abs(num_frames - by_duration) > COUNT_TOLERANCE * num_frames else num_frames


def frame_indices(num_frames: int, source_fps: float, fps: float) -> list[int]:
    """The frame of the source to show at each instant of a video of `fps` that lasts as long; at least one."""
    count = max(1, int(num_frames / source_fps * fps))
    return [min(round(i / fps * source_fps), num_frames - 1) for i in range(count)]


def output_size(width: int, height: int, *, area: int, multiple: int = 16) -> tuple[int, int]:
    """(width, height) of about `area` pixels with the aspect of the source, each cut down to a multiple of `multiple`.

    Up to `multiple` - 1 pixels per side are lost against `area`: the published rule. Raises RequestError if nothing is left.
    """
    exact_height = math.sqrt(area / (width / height))
    size = (int(area / exact_height) // multiple * multiple, int(exact_height) // multiple * multiple)
    if not all(size):
        raise RequestError(
            f"a picture of {width}x{height} is too thin for an area of {area} pixels: a side would be under {multiple}; crop it"
        )
    return size


def fit_to_area(pictures: torch.Tensor, *, area: int, multiple: int = 16) -> torch.Tensor:
    """uint8 [..., h, w, 3] at `output_size`, for uint8 pictures [..., H, W, 3]; thin black bars make up for the multiples."""
    height, width = pictures.shape[-3:-1]
    new_width, new_height = output_size(width, height, area=area, multiple=multiple)
    return letterbox(pictures, new_width, new_height, average=new_width * new_height < width * height)


def frames_in_time(times: Sequence[float], end: float, source_fps: float, fps: float | None) -> tuple[list[int], float]:
    """(the frame to show at each instant, frames per second) for frames that appear at `times` seconds, up to `end`.

    No `fps` takes the source's. Even times follow `frame_indices`; uneven ones, as phones and screen recorders make them,
    show the frame nearest in time, but none more than half a frame before it appeared.
    """
    rate = fps or source_fps
    if _is_even(times, source_fps):
        return (list(range(len(times))) if fps is None else frame_indices(len(times), source_fps, fps)), rate
    count = max(1, int(end * rate + 1e-6))
    return [_frame_at(times, i / rate, early=0.5 / rate) for i in range(count)], rate


def _frame_at(times: Sequence[float], instant: float, *, early: float) -> int:
    shown = max(bisect.bisect_right(times, instant + 1e-6) - 1, 0)
    if shown + 1 < len(times):
        ahead = times[shown + 1] - instant
        if ahead <= early and ahead < instant - times[shown]:
            return shown + 1
    return shown


def _is_even(times: Sequence[float], fps: float) -> bool:
    # Containers round times to as little as a millisecond.
    return all(abs(time - i / fps) <= EVEN_TOLERANCE / fps + 0.001 for i, time in enumerate(times))
