"""Sound: any file, or the sound track of a video, as one channel at one rate."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch

from kinograph.errors import MediaError, MissingExtraError
from kinograph.media.files import read_error


def read_audio(path: str | os.PathLike[str], sample_rate: int = 16000) -> torch.Tensor:
    """The first sound track of `path` as float32 [ceil(n · sample_rate / rate)], about -1 to 1: the mean of its channels.

    Nothing is trimmed and the loudness is kept. Resampled as `resample` does.
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
            parts = list(_samples(container))
            rate = container.streams.audio[0].codec_context.sample_rate
        except (OSError, ValueError, av.error.FFmpegError) as error:
            raise read_error(path, error, kind="sound") from error
    if not sum(map(len, parts)):
        raise MediaError(f"{path} has a sound track without any sound in it; it is damaged or was not written completely")
    return resample(torch.from_numpy(np.concatenate(parts)), rate, sample_rate)


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
    """The mean of the channels, float32 [n], frame by frame."""
    to_float = av.AudioResampler(format="fltp")
    for frame in container.decode(audio=0):
        for planes in to_float.resample(frame):
            yield planes.to_ndarray().mean(axis=0)
    for planes in to_float.resample(None):
        yield planes.to_ndarray().mean(axis=0)
