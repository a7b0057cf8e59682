"""Drawn videos with a red figure, a `PersonFinder` that finds what is red, and a skeleton."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from kinograph.preprocess.animate.boxes import Person
from kinograph.preprocess.animate.keypoints import Skeleton

# Fractions of the figure's box (x, y) for whole-body points 0 to 22: a front view, arms stretched out.
_BODY = (
    (0.5, 0.1), (0.54, 0.08), (0.46, 0.08), (0.58, 0.1), (0.42, 0.1), (0.7, 0.25), (0.3, 0.25), (0.85, 0.25), (0.15, 0.25), (0.98, 0.25),
    (0.02, 0.25), (0.6, 0.55), (0.4, 0.55), (0.6, 0.75), (0.4, 0.75), (0.6, 0.92), (0.4, 0.92),
    (0.65, 0.98), (0.65, 0.98), (0.6, 0.98), (0.35, 0.98), (0.35, 0.98), (0.4, 0.98),
)  # fmt: skip


def posture() -> np.ndarray:
    """[133, 3]: fractions of the figure's box, all sure."""
    points = np.ones((133, 3))
    points[:23, :2] = _BODY
    points[23:91, :2] = np.column_stack([np.linspace(0.42, 0.58, 68), 0.08 + 0.08 * np.abs(np.sin(np.arange(68)))])
    for hand, (x, y) in ((slice(91, 112), (0.98, 0.25)), (slice(112, 133), (0.02, 0.25))):
        points[hand, :2] = np.array([x, y]) + np.linspace(0, 0.02, 21)[:, None]
    return points


def standing(*, arm: float = 1.0) -> Skeleton:
    """A person who faces the camera, in fractions of the frame; `arm` lengthens the upper arms."""
    x = [0.5, 0.5, 0.42, 0.42 - 0.1 * arm, 0.22, 0.58, 0.58 + 0.1 * arm, 0.78, 0.46, 0.46, 0.46, 0.54, 0.54, 0.54]
    y = [0.15, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.5, 0.7, 0.88, 0.5, 0.7, 0.88]
    x += [0.48, 0.52, 0.46, 0.54, 0.55, 0.45]
    y += [0.14, 0.14, 0.15, 0.15, 0.91, 0.91]
    body = np.column_stack([x, y, np.ones(20)])
    hands = [np.column_stack([np.full(21, body[wrist, 0]), np.linspace(0.25, 0.3, 21), np.ones(21)]) for wrist in (7, 4)]
    return Skeleton(body, *hands)


class RedFinder:
    """Finds red rectangles, left to right; the points of a person are laid over the box."""

    def __init__(self, *, faces: bool = True, masks: bool = True) -> None:
        self.faces, self.has_masks = faces, masks

    def find(self, frame: np.ndarray) -> list[Person]:
        columns = np.flatnonzero(_red(frame).any(axis=0))
        groups = np.split(columns, np.flatnonzero(np.diff(columns) > 8) + 1) if len(columns) else []
        return [Person(*_box(_red(frame), group), 1.0) for group in groups]

    def restart(self) -> None:
        pass

    def observe(self, frame: np.ndarray, person: Person) -> np.ndarray:
        points = posture()
        centre = (person.x1 + person.x2) / 2
        here = [box for box in self.find(frame) if box.x1 <= centre <= box.x2]
        if not here:
            return np.zeros((133, 3))
        x1, y1, x2, y2, _ = here[0]
        points[:, :2] = points[:, :2] * (x2 - x1, y2 - y1) + (x1, y1)
        if not self.faces:
            points[23:91, 2] = 0
        return points

    def masks(self, frames: Callable[[], Iterable[np.ndarray]], people: list[Person], points: np.ndarray) -> Iterator[np.ndarray]:
        for frame in frames():
            yield _red(frame) & self.has_masks


def _red(frame: np.ndarray) -> np.ndarray:
    r, g, b = frame.astype(int).transpose(2, 0, 1)
    return (r > 150) & (g < 90) & (b < 90)


def _box(red: np.ndarray, columns: np.ndarray) -> tuple[float, float, float, float]:
    rows = np.flatnonzero(red[:, columns[0] : columns[-1] + 1].any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def scene(x: int | None, *, width: int = 160, height: int = 96) -> np.ndarray:
    """uint8 [height, width, 3]: a green room, with a red figure 40 wide and 64 high at `x` if there is one."""
    frame = np.full((height, width, 3), (40, 120, 60), dtype=np.uint8)
    if x is not None:
        frame[16:80, x : x + 40] = (220, 20, 20)
    return frame


def save_video(
    path: Path, frames: Iterable[np.ndarray], *, fps: int = 30, sound: float | None = None, times: list[int] | None = None, **options: str
) -> Path:
    """H.264 of `frames`, at `times` in milliseconds if given; with a tone of `sound` seconds; `options` of the codec."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "12", "bf": "0", **options})
        video.pix_fmt = "yuv420p"
        if times:
            video.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for i, pixels in enumerate(frames):
            if i == 0:
                video.height, video.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[i], video.codec_context.time_base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio and sound:
            wave = np.sin(np.arange(int(sound * 16000)) / 16000 * 440 * 2 * np.pi)[None].astype(np.float32)
            tone = av.AudioFrame.from_ndarray(0.5 * wave, format="fltp", layout="mono")
            tone.sample_rate, tone.pts = 16000, 0
            container.mux(audio.encode(tone))
            container.mux(audio.encode(None))
    return path


def save_picture(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path
