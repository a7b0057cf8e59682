"""Sound: any file, or the sound track of a video, as it is or as one channel at one rate."""
from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from av.stream import Disposition

from kinograph.errors import MediaError, MissingExtraError
from kinograph.media.files import read_error


@dataclass(frozen=True, kw_only=True)
class Sound:
    """What is heard: `samples` float32 [channels, n], about -1 to 1, `rate` of them a second."""

    samples: torch.Tensor
    rate: int

    def __post_init__(self) -> None:
        if self.samples.dim() != 2 or not self.samples.is_floating_point() or self.samples.shape[0] < 1:
            raise ValueError(f"samples must be float [channels, n]; got {self.samples.dtype} {list(self.samples.shape)}")
        if self.rate < 1:
            raise ValueError(f"rate must be a positive number of samples a second; got {self.rate}")

    @property
    def seconds(self) -> float:
        return self.samples.shape[1] / self.rate

    def mono(self, rate: int) -> torch.Tensor:
        """float32 [ceil(n · rate / self.rate)]: the mean of the channels, resampled as `resample` does."""
        wave = self.samples[0] if len(self.samples) == 1 else torch.from_numpy(self.samples.numpy().mean(axis=0))
        return resample(wave, self.rate, rate)


def read_sound(path: str | os.PathLike[str]) -> Sound:
    """The first sound track of `path`, with its own channels and rate. Nothing is trimmed and the loudness is kept.

    In a file with pictures the sound begins when they do: silence is put before it, or its beginning cut, where the file says so.
    Raises MediaError for what is not readable, has no sound track, or one without a sample in it.
    """
    path = Path(path)
    try:
        container = av.open(str(path))
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise read_error(path, error, kind="sound") from error
    with container:
        if not container.streams.audio:
            raise MediaError(f"{path} has no sound track; name a file with sound in it")
        try:
            begin = _seconds_before_sound(path)
            parts = list(_samples(container))
            rate = container.streams.audio[0].codec_context.sample_rate
        except (OSError, ValueError, av.error.FFmpegError) as error:
            raise read_error(path, error, kind="sound") from error
    if not sum(part.shape[1] for part in parts):
        raise MediaError(f"{path} has a sound track without any sound in it; it is damaged or was not written completely")
    samples = torch.from_numpy(np.concatenate(parts, axis=1))
    return Sound(samples=torch.nn.functional.pad(samples, (max(round(begin * rate), 1 - samples.shape[1]), 0)), rate=rate)


def read_audio(path: str | os.PathLike[str], sample_rate: int = 16000) -> torch.Tensor:
    """The sound of `path` (`read_sound`) in one channel: float32 [ceil(n · sample_rate / rate)], the mean of its channels."""
    return read_sound(path).mono(sample_rate)


def resample(wave: torch.Tensor, rate: int, new_rate: int) -> torch.Tensor:
    """float32 [ceil(n · new_rate / rate)] for `wave` [n] at `rate` samples a second, band-limited: soxr at its quality HQ.

    The speech models were trained on sound resampled like this; other resamplers differ near the highest frequency kept.
    Raises MissingExtraError where the package soxr is not installed and the rates differ.
    """
    if rate == new_rate:
        return wave
    try:
        import soxr
    except ImportError as error:
        raise MissingExtraError(f"changing the rate of a sound from {rate} to {new_rate} Hz", "soxr", "speech") from error
    resampled = torch.from_numpy(soxr.resample(wave.numpy(), rate, new_rate, quality="HQ"))
    length = -(-len(wave) * new_rate // rate)
    return torch.nn.functional.pad(resampled, (0, length - len(resampled)))  # a sample more or less, at the end


def _samples(container: av.container.InputContainer) -> Iterator[np.ndarray]:
    """float32 [channels, n], frame by frame."""
    to_float = av.AudioResampler(format="fltp")
    for frame in container.decode(audio=0):
        for planes in to_float.resample(frame):
            yield planes.to_ndarray()
    for planes in to_float.resample(None):
        yield planes.to_ndarray()


def _seconds_before_sound(path: Path) -> float:
    """From the first picture to the first sample; negative where the sound begins earlier, 0 without pictures."""
    with av.open(str(path)) as container:
        pictures = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not pictures:
            return 0.0
        starts: dict[str, float] = {}
        for frame in container.decode(pictures[0], container.streams.audio[0]):
            if isinstance(frame, (av.VideoFrame, av.AudioFrame)) and frame.time is not None:
                starts.setdefault(type(frame).__name__, frame.time)
            if len(starts) == 2:
                return starts["AudioFrame"] - starts["VideoFrame"]
    return 0.0
