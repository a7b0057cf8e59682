"""The sound track of a video as a file of its own, in step with the pictures."""
from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream

from kinograph.media.files import PendingOutput, read_error, write_error

BIT_RATE = 192_000
_BLOCK = 1024


def save_sound_track(video: str | os.PathLike[str], target: Path, *, seconds: float) -> bool:
    """Write the first sound track of `video` as AAC in `target` (.m4a): from its first picture on, `seconds` long.

    Sound that begins later is preceded by silence. False, and no file, where there is no sound.
    Raises MediaError for what cannot be read or written.
    """
    samples, rate = _samples(Path(video), seconds)
    if samples is None:
        return False
    pending = PendingOutput(target)
    try:
        _write(pending.partial, samples, rate)
        pending.commit(overwrite=True)
    except (OSError, av.error.FFmpegError) as error:
        raise write_error(target, error) from error
    finally:
        pending.discard()
    return True


def _samples(path: Path, seconds: float) -> tuple[np.ndarray | None, int]:
    """(float32 [channels, n] of at most two channels, samples a second); None without a sound track or a sample in it."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                return None, 0
            stream = container.streams.audio[0]
            rate, channels = stream.codec_context.sample_rate, min(stream.codec_context.channels, 2)
            resampler = AudioResampler(format="fltp", layout="mono" if channels == 1 else "stereo", rate=rate)
            start = _first_picture(path)
            result = np.zeros((channels, max(round(seconds * rate), 1)), dtype=np.float32)
            position: int | None = None
            for frame in container.decode(stream):
                if position is None:
                    position = round((float(frame.time or 0) - start) * rate)
                for part in resampler.resample(frame):
                    position = _put(result, part.to_ndarray(), position)
            return (None if position is None else result), rate
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise read_error(path, error, kind="video") from error


def _put(result: np.ndarray, part: np.ndarray, position: int) -> int:
    begin, end = max(position, 0), min(position + part.shape[1], result.shape[1])
    if begin < end:
        result[:, begin:end] = part[:, begin - position : end - position]
    return position + part.shape[1]


def _first_picture(path: Path) -> float:
    with av.open(str(path)) as container:
        return float(next((frame.time for frame in container.decode(video=0)), None) or 0)


def _write(path: Path, samples: np.ndarray, rate: int) -> None:
    layout = "mono" if len(samples) == 1 else "stereo"
    with av.open(str(path), "w", format="mp4") as container:
        stream = cast(AudioStream, container.add_stream("aac", rate=rate, layout=layout))
        stream.bit_rate = BIT_RATE
        for start in range(0, samples.shape[1], _BLOCK):
            block = np.ascontiguousarray(samples[:, start : start + _BLOCK])
            frame = AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
