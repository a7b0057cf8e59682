"""Filled shapes on a canvas, pixel by pixel and without antialiasing.

The animation model was trained on skeletons drawn by OpenCV, so these follow its rules: polygons are their outlines, drawn
as lines of single pixels, and what lies between in each row; circles are of the midpoint kind.
Canvases are uint8 [H, W, 3] and changed in place; points are (x, y) in pixels, 0 at the centre of the first; shapes may
reach beyond the canvas.
"""
from __future__ import annotations

import functools

import numpy as np

Colour = tuple[int, int, int]


def fill_ellipse(canvas: np.ndarray, centre: tuple[int, int], half_axes: tuple[int, int], degrees: int, colour: Colour) -> None:
    """A filled ellipse; its first half axis is turned by `degrees` clockwise from the right."""
    fill_polygon(canvas, _ellipse_outline(centre, half_axes, degrees), colour)


def fill_polygon(canvas: np.ndarray, corners: np.ndarray, colour: Colour) -> None:
    """A filled convex polygon with `corners` [n, 2], of any real coordinates."""
    x, y = _line_pixels(corners, np.roll(corners, -1, axis=0), rows=canvas.shape[0], columns=None)
    if len(y) == 0:
        return
    top = int(y.min())
    left = np.full(int(y.max()) - top + 1, np.iinfo(np.int64).max)
    right = np.full_like(left, -1)
    np.minimum.at(left, y - top, x)
    np.maximum.at(right, y - top, x)
    for row, (start, end) in enumerate(zip(np.maximum(left, 0).tolist(), (right + 1).tolist()), top):
        if 0 <= row < canvas.shape[0] and start < end:
            canvas[row, start:end] = colour


def draw_line(canvas: np.ndarray, start: tuple[int, int], end: tuple[int, int], thickness: int, colour: Colour) -> None:
    """A straight line; from a thickness of 2 on with round ends."""
    a, b = np.array(start, dtype=np.float64), np.array(end, dtype=np.float64)
    if thickness == 1:
        x, y = _line_pixels(a[None], b[None], rows=canvas.shape[0], columns=canvas.shape[1])
        canvas[y, x] = colour
        return
    length = np.linalg.norm(b - a)
    if length > 0:
        half = (thickness + thickness % 2) / 2 / length
        across = np.array([a[1] - b[1], b[0] - a[0]]) * half
        fill_polygon(canvas, np.array([a + across, a - across, b - across, b + across]), colour)
    for point in (start, end):
        fill_circle(canvas, point, (thickness + 1) // 2, colour)


def fill_circle(canvas: np.ndarray, centre: tuple[int, int], radius: int, colour: Colour) -> None:
    """A filled circle."""
    x, y = centre
    for row, half in enumerate(_circle_rows(radius), y - radius):
        if 0 <= row < canvas.shape[0] and x + half >= 0:
            canvas[row, max(x - half, 0) : x + half + 1] = colour


@functools.cache
def _circle_rows(radius: int) -> tuple[int, ...]:
    """Half the width of each row of a circle, from top to bottom, by the midpoint rule."""
    half = np.zeros(2 * radius + 1, dtype=int)
    x, y, error = radius, 0, 0
    while x >= y:
        for row, width in ((y, x), (x, y)):
            half[[radius - row, radius + row]] = np.maximum(half[radius + row], width)
        error += 2 * y + 1
        y += 1
        if error > 0:
            error -= 2 * x - 1
            x -= 1
    return tuple(half.tolist())


@functools.cache
def _unit_circle() -> np.ndarray:
    # Seven digits, as in the table that the training material was drawn with: rounding to pixels depends on them.
    angles = np.radians(np.arange(361))
    return np.stack([np.cos(angles), np.sin(angles)]).round(7)


def _ellipse_outline(centre: tuple[int, int], half_axes: tuple[int, int], degrees: int) -> np.ndarray:
    cosine, sine = _unit_circle()
    x, y = half_axes[0] * cosine, half_axes[1] * sine
    turn_cosine, turn_sine = cosine[degrees % 360], sine[degrees % 360]
    points = np.stack([centre[0] + x * turn_cosine - y * turn_sine, centre[1] + x * turn_sine + y * turn_cosine], axis=1)
    points = np.rint(points)
    changes = np.any(points[1:] != points[:-1], axis=1)
    return points[1:][changes] if changes.any() else points[:1]


def _line_pixels(start: np.ndarray, end: np.ndarray, *, rows: int, columns: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the pixels of lines from `start` to `end` [n, 2] that lie in `rows`, and in `columns` if given.

    One pixel per step along the longer axis, from the left end; halves are rounded back towards that end.
    """
    backward = (start[:, 0] > end[:, 0])[:, None]
    start, end = np.where(backward, end, start), np.where(backward, start, end)
    steep = np.abs(end - start)[:, 1] > np.abs(end - start)[:, 0]
    major = np.stack([steep, ~steep], axis=1)[:, ::-1]  # which of (x, y) is the longer axis
    begin, stop = (np.floor(points[major] + 0.5).astype(np.int64) for points in (start, end))
    length, rise = (end - start)[major], (end - start)[~major]

    counts = np.abs(stop - begin) + 1
    line = np.repeat(np.arange(len(start)), counts)
    step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    along = begin[line] + np.sign(length).astype(np.int64)[line] * step
    across = start[~major][line] + step * rise[line] / np.maximum(np.abs(length), 1)[line]
    across = np.where(rise[line] > 0, np.ceil(across - 0.5), np.floor(across + 0.5)).astype(np.int64)
    x, y = np.where(steep[line], across, along), np.where(steep[line], along, across)
    inside = (y >= 0) & (y < rows)
    if columns is not None:
        inside &= (x >= 0) & (x < columns)
    return x[inside], y[inside]
