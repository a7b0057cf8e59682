"""The person's mask for replacement: where the segmenter is prompted, how its mask is widened, what is cut out.

Masks are bool or uint8 [H, W], nonzero on the person.
"""
from __future__ import annotations

import numpy as np

from kinograph.preprocess.animate.keypoints import L_ANKLE, L_HIP, L_SHOULDER, NECK, NOSE, R_ANKLE, R_HIP, R_SHOULDER

CHUNK = 400  # frames that the segmenter tracks at a time
PROMPT_JOINTS = (NOSE, NECK, R_SHOULDER, L_SHOULDER, R_HIP, L_HIP, R_ANKLE, L_ANKLE)


def tracking_chunks(num_frames: int) -> list[tuple[int, list[int]]]:
    """(frames, key frames among them, from 0) of each chunk that the segmenter tracks: prompts go to the key frames."""
    lengths = [min(CHUNK, num_frames - start) for start in range(0, num_frames, CHUNK)]
    return [(length, key_frames(length)) for length in lengths]


def key_frames(num_frames: int) -> list[int]:
    """The first frame of up to four, otherwise every (num_frames // 4)-th."""
    return [0] if num_frames <= 4 else list(range(0, num_frames, num_frames // 4))


def prompt_points(body: np.ndarray, *, min_score: float | None = None) -> np.ndarray:
    """int [n, 2]: pixels (x, y) that are on the person, from the joints [20, 3] in pixels.

    Without `min_score` all eight are used, as published; with it, those scored that high.
    """
    joints = body[list(PROMPT_JOINTS)]
    if min_score is not None:
        joints = joints[joints[:, 2] >= min_score]
    return joints[:, :2].astype(int)


def widened(mask: np.ndarray, *, iterations: int = 3, k: int = 7, w_len: int = 1, h_len: int = 1) -> np.ndarray:
    """uint8 [H, W] of 0 and 1: the mask grown by k x k squares `iterations` times, then filled up in blocks.

    The bounding box of the grown mask is cut into `w_len` x `h_len` blocks, and each that holds any of it is filled; 1 x 1
    makes a rectangle. No iterations: the mask as it is. An empty mask stays empty.
    """
    if iterations <= 0:
        return (mask > 0).astype(np.uint8)
    return filled_blocks(dilated(mask, iterations=iterations, k=k), w_len=w_len, h_len=h_len)


def dilated(mask: np.ndarray, *, iterations: int, k: int) -> np.ndarray:
    """uint8 [H, W] of 0 and 1: what a k x k square centred anywhere on the mask covers, `iterations` times over."""
    result = np.zeros(mask.shape, dtype=np.uint8)
    if (box := bounds(mask)) is None:
        return result
    before, after = iterations * (k // 2), iterations * ((k - 1) // 2)  # repeated squares are one larger square
    y, x = (slice(max(part.start - after, 0), part.stop + before) for part in box)
    grown = mask[y, x] > 0
    for axis in (0, 1):
        grown = _spread(grown, before, after, axis)
    result[y, x] = grown
    return result


def bounds(mask: np.ndarray) -> tuple[slice, slice] | None:
    """(rows, columns) that hold the mask; None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def filled_blocks(mask: np.ndarray, *, w_len: int, h_len: int) -> np.ndarray:
    """uint8 [H, W] of 0 and 1 with every touched block of the mask's bounding box filled.

    The box's last row and column belong to no block and stay as they are: the published rule.
    """
    result = (mask > 0).astype(np.uint8)
    if (box := bounds(result)) is None:
        return result
    y1, y2, x1, x2 = box[0].start, box[0].stop - 1, box[1].start, box[1].stop - 1
    width, height = max((x2 - x1) // w_len, 1), max((y2 - y1) // h_len, 1)
    for y in range(y1, y2, height):
        for x in range(x1, x2, width):
            block = result[y : min(y + height, y2), x : min(x + width, x2)]
            if block.any():
                block[:] = 1
    return result


def without_person(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The frame [H, W, 3] with black where the mask is set."""
    result = frame.copy()
    if (box := bounds(mask)) is not None:
        result[box] *= (mask[box] == 0)[:, :, None]
    return result


def _spread(mask: np.ndarray, before: int, after: int, axis: int) -> np.ndarray:
    """Whether any of the `before` cells in front to the `after` cells behind is set, along an axis: a running sum says."""
    size = mask.shape[axis]
    pad = [(0, 0), (0, 0)]
    pad[axis] = (1, 0)
    sums = np.cumsum(np.pad(mask, pad), axis=axis, dtype=np.int32)
    position = np.arange(size)
    upper, lower = np.minimum(position + after + 1, size), np.maximum(position - before, 0)
    return np.take(sums, upper, axis=axis) > np.take(sums, lower, axis=axis)
