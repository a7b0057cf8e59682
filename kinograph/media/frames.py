"""Frames of a video by number, for readers that go through it clip by clip and must not hold it whole."""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from kinograph.errors import MediaError
from kinograph.media.video import _Reader


class FrameReader:
    """A video whose frames are decoded when they are asked for.

    It keeps the frames of the last call, so that calls for overlapping parts, each further on than the one before, decode the
    file once. Going back further than that begins the file anew.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._frames: Iterator[torch.Tensor] | None = None
        self._kept: deque[torch.Tensor] = deque()
        self._first = 0  # number of the first frame kept

    def read(self, numbers: Sequence[int]) -> torch.Tensor:
        """uint8 [len(numbers), H, W, 3]: the frames of these numbers, from 0, in this order.

        Raises MediaError where the file is not readable, or ends before.
        """
        low, high = min(numbers), max(numbers)
        if self._frames is None or low < self._first:
            self._frames, self._first = self._decoded(), 0
            self._kept.clear()
        while self._first + len(self._kept) <= high:
            frame = next(self._frames, None)
            if frame is None:
                raise MediaError(f"{self.path} ends after {self._first + len(self._kept)} frames; it is damaged, make it again")
            self._kept.append(frame)
            self._forget(low)
        self._forget(low)
        return torch.stack([self._kept[number - self._first] for number in numbers])

    def _forget(self, low: int) -> None:
        while self._kept and self._first < low:
            self._kept.popleft()
            self._first += 1

    def _decoded(self) -> Iterator[torch.Tensor]:
        with _Reader(self.path) as reader:
            for pixels in reader.frames():
                yield torch.from_numpy(pixels)


def count_frames(path: str | os.PathLike[str]) -> int:
    """Frames of a video, by its index or, where it has none, by its packets: nothing is decoded."""
    with _Reader(path) as reader:
        return reader.stream.frames or sum(1 for packet in reader.container.demux(reader.stream) if packet.size)
