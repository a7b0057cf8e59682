"""Heatmaps of a pose network to keypoints: the peak, refined below a cell (DARK, Zhang et al. 2020)."""
from __future__ import annotations

import functools

import numpy as np

BLUR_TAPS = 11
BLUR_SIGMA = 2.0
SMALLEST = 1e-10  # before the logarithm
_MARGIN = 2  # cells that the second derivative needs on each side of a peak


def keypoints_from_heatmaps(heatmaps: np.ndarray, centre: tuple[float, float], extent: tuple[float, float]) -> np.ndarray:
    """float64 [K, 3]: (x, y, score) in pixels of the frame, for heatmaps [K, h, w] of a crop of it.

    The crop is `extent` (width, height) large around `centre` (x, y). The score is the maximum of the map, unclipped; a map
    without a positive value puts its point at cell (-1, -1), outside the crop.
    """
    height, width = heatmaps.shape[1:]
    cells, scores = peaks(heatmaps)
    cells = refined(heatmaps, cells)
    scale = np.array([extent[0] / width, extent[1] / height])
    corner = np.array([centre[0] - extent[0] / 2, centre[1] - extent[1] / 2])
    return np.concatenate([cells * scale + corner, scores[:, None]], axis=1)


def peaks(heatmaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [K, 2] columns and rows of the maxima, the first one of equals; their values [K]); (-1, -1) if none is positive."""
    flat = heatmaps.reshape(len(heatmaps), -1)
    index, scores = flat.argmax(axis=1), flat.max(axis=1)
    cells = np.stack([index % heatmaps.shape[2], index // heatmaps.shape[2]], axis=1).astype(np.float64)
    cells[scores <= 0] = -1
    return cells, scores


def refined(heatmaps: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """`cells` [K, 2] moved to the top of the parabola through the logarithm of the blurred maps; those at the border stay."""
    height, width = heatmaps.shape[1:]
    column, row = cells.astype(int).T
    inner = (column >= _MARGIN) & (column < width - _MARGIN) & (row >= _MARGIN) & (row < height - _MARGIN)
    k, x, y = np.flatnonzero(inner), column[inner], row[inner]
    if len(k) == 0:
        return cells.copy()
    logs = np.log(np.maximum(blurred(heatmaps[k]), SMALLEST))

    def at(dx: int, dy: int) -> np.ndarray:
        return logs[np.arange(len(k)), y + dy, x + dx].astype(np.float64)

    gradient = np.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], axis=1) / 2
    dxx = (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4
    dyy = (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4
    dxy = (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1)) / 4
    determinant = dxx * dyy - dxy**2
    # The inverse of [[dxx, dxy], [dxy, dyy]] written out; a flat top, with determinant 0, is left where it is.
    inverse_times = np.stack([dyy * gradient[:, 0] - dxy * gradient[:, 1], dxx * gradient[:, 1] - dxy * gradient[:, 0]], axis=1)
    move = np.divide(inverse_times, determinant[:, None], out=np.zeros_like(gradient), where=determinant[:, None] != 0)
    result = cells.copy()
    result[k] -= move
    return result


def blurred(heatmaps: np.ndarray) -> np.ndarray:
    """The maps [K, h, w] after a Gaussian blur, with zeros around them, each with its maximum as before."""
    rows, columns = _blur_matrix(heatmaps.shape[1]), _blur_matrix(heatmaps.shape[2])
    blurred = rows @ heatmaps.astype(np.float32) @ columns
    before, after = heatmaps.max(axis=(1, 2), keepdims=True), blurred.max(axis=(1, 2), keepdims=True)
    return blurred * np.divide(before, after, out=np.ones_like(after), where=after != 0)


@functools.cache
def _blur_matrix(size: int) -> np.ndarray:
    """[size, size], symmetric: what a line of `size` cells is multiplied by to be blurred."""
    distance = np.arange(BLUR_TAPS) - BLUR_TAPS // 2
    taps = np.exp(-(distance**2) / (2 * BLUR_SIGMA**2))
    taps /= taps.sum()
    apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    return np.where(apart <= BLUR_TAPS // 2, taps[np.minimum(apart, BLUR_TAPS // 2) + BLUR_TAPS // 2], 0).astype(np.float32)
