"""Video files: written completely or not at all, with a text about their making inside; read upright and in true colours."""
from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av
import numpy as np
import torch
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import Colorspace
from PIL import Image

from kinograph.errors import MediaError
from kinograph.media.audio import Sound
from kinograph.media.encoders import CODECS, SOUND_CODECS, SUFFIXES, TEXT_KEY, Encoder, make_encoder
from kinograph.media.files import PendingOutput, check_folder_writable, read_error, unique_path, write_error
from kinograph.media.hdr import to_standard_range

_BT2020 = (9, 10)  # ITU-T H.273, constant and non-constant luminance; the converter knows one matrix for both
_SWS_BT2020 = 9
_HD_ROWS = 576  # untagged video with more rows than this is taken as BT.709, with less as BT.601, as players do


# ----------------------------------------------------------------------------------------------------------- writing


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise MediaError now if `write_video(path, ...)` could not succeed; creates the parent folder if it is missing.

    For the start of a run, before any model is loaded: looks at the format, the encoder, permissions, and 1 MB of space.
    """
    target = Path(path)
    codec, _ = CODECS.get(_kind(path), ("", {}))
    if codec:
        try:
            av.Codec(codec, "w")
        except ValueError as error:  # av's UnknownCodecError
            raise MediaError(
                f"the installed PyAV cannot write {target.suffix} (it lacks {codec}); reinstall it with: pip install --force-reinstall av"
            ) from error
    check_folder_writable(target.parent)


class VideoWriter:
    """Writes a video chunk by chunk. The file gets its name when the `with` block ends well; otherwise nothing is left.

        with VideoWriter("clip.mp4", fps=16, metadata=recipe.to_json()) as writer:
            for frames in chunks:  # uint8 [T, H, W, 3]
                writer.add(frames)
        writer.path

    The suffix picks the format: .mp4, .mov (H.264), .webm (VP9), .gif, .png (one frame); no suffix, a trailing slash or an
    existing folder gives a folder of PNGs. `metadata` is any text; `read_metadata` returns it.
    `sound` begins with the first frame and is as long as the video: cut, or followed by silence. It is AAC in .mp4 and .mov and
    Opus in .webm; the other formats cannot hold it and stay silent.
    Nothing is overwritten unless `overwrite`: a path that exists is refused at once, and if one appears during the work, the
    video gets the next free name, which `path` tells afterwards.
    Raises MediaError with the reason when the file cannot be written; ValueError for arrays that are not frames.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: float,
        metadata: str | None = None,
        overwrite: bool = False,
        sound: Sound | None = None,
    ) -> None:
        if not (math.isfinite(fps) and fps > 0):
            raise MediaError(f"fps must be a positive number; got {fps}")
        self._kind = _kind(path)
        self.path = Path(path)
        if not overwrite and unique_path(self.path) != self.path:
            raise MediaError(f"{self.path} exists already; choose another name, such as {unique_path(self.path).name}")
        self._fps, self._metadata, self._overwrite, self._sound = fps, metadata, overwrite, sound
        self._size: tuple[int, int] | None = None  # height, width, from the first chunk
        self._encoder: Encoder | None = None

    def __enter__(self) -> VideoWriter:
        self._pending = PendingOutput(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._encoder = make_encoder(
                self._pending.partial, kind=self._kind, fps=self._fps, text=self._metadata, sound=self._sound
            )
        except (OSError, ValueError, av.error.FFmpegError) as error:
            self._discard()
            raise write_error(self.path, error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def add(self, frames: torch.Tensor) -> None:
        """Append uint8 [T, H, W, 3], of the same H and W as before."""
        if frames.dim() != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            raise ValueError(f"frames must be uint8 [T, H, W, 3]; got {frames.dtype} {list(frames.shape)}")
        if len(frames) == 0:
            return
        self._check_size(int(frames.shape[1]), int(frames.shape[2]))
        assert self._encoder is not None, "VideoWriter writes inside its `with` block"
        try:
            self._encoder.add(frames.cpu().numpy())
        except (OSError, av.error.FFmpegError) as error:
            raise write_error(self.path, error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()  # after a commit there is nothing left to discard

    def _finish(self) -> None:
        if self._size is None or self._encoder is None:
            raise MediaError(f"{self.path} was not written: the video has no frames")
        try:
            self._encoder.finish()
            self.path = self._pending.commit(overwrite=self._overwrite)
        except (OSError, av.error.FFmpegError) as error:
            raise write_error(self.path, error) from error

    def _discard(self) -> None:
        if self._encoder is not None:
            self._encoder.abandon()
        self._pending.discard()

    def _check_size(self, height: int, width: int) -> None:
        if self._kind in CODECS and (height % 2 or width % 2):
            raise MediaError(
                f"{self.path.suffix} video needs an even width and height; got {width} x {height}: write .gif or a folder of pictures"
            )
        if self._size not in (None, (height, width)):
            raise ValueError(f"all frames must be of one size; got {width} x {height} after {self._size[1]} x {self._size[0]}")
        self._size = (height, width)


def write_video(
    path: str | os.PathLike[str],
    frames: torch.Tensor | Iterable[torch.Tensor],
    fps: float,
    *,
    metadata: str | None = None,
    overwrite: bool = False,
    sound: Sound | None = None,
) -> Path:
    """Write uint8 [T, H, W, 3], or an iterable of such chunks; returns the path written. See `VideoWriter`."""
    with VideoWriter(path, fps=fps, metadata=metadata, overwrite=overwrite, sound=sound) as writer:
        for chunk in [frames] if isinstance(frames, torch.Tensor) else frames:
            writer.add(chunk)
    return writer.path


def holds_sound(path: str | os.PathLike[str]) -> bool:
    """Whether what `write_video(path, ...)` writes can have a sound."""
    return _kind(path) in SOUND_CODECS


def _kind(path: str | os.PathLike[str]) -> str:
    """A suffix of `SUFFIXES`, or "" for a folder."""
    text, suffix = os.fspath(path), Path(path).suffix.lower()
    if text.endswith(("/", os.sep)) or os.path.isdir(text) or not suffix:
        if os.path.isfile(text):
            raise MediaError(f"{text} is a file, and a name without a suffix means a folder of pictures; add .mp4 to the name")
        return ""
    if suffix not in SUFFIXES:
        raise MediaError(f"cannot write {suffix} files; use one of {', '.join(SUFFIXES)}, or a folder name for one picture per frame")
    return suffix


# ----------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What `probe` finds out. Sizes are those of the upright picture."""

    width: int
    height: int
    fps: float
    num_frames: int | None  # None: the file does not say
    duration: float | None  # seconds
    codec: str
    has_audio: bool


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Size, rate and length of a video, from its header and first frame. Raises MediaError if it is not a readable video."""
    with _Reader(path) as reader:
        stream = reader.stream
        first = next(reader.frames(), None)
        if first is None:
            raise MediaError(f"{path} has no frames; it is damaged or was not written completely")
        duration = _duration(reader.container, stream)
        return VideoInfo(
            width=first.shape[1],
            height=first.shape[0],
            fps=reader.fps,
            num_frames=stream.frames or (round(duration * reader.fps) if duration else None),
            duration=duration,
            codec=stream.codec_context.name,
            has_audio=bool(reader.container.streams.audio),
        )


def read_video(path: str | os.PathLike[str], max_frames: int | None = None) -> tuple[torch.Tensor, float]:
    """(uint8 [T, H, W, 3], frames per second) of the first `max_frames`, upright: the file's rotation is applied.

    Raises MediaError if the file is not a readable video.
    """
    with _Reader(path) as reader:
        frames: list[torch.Tensor] = []
        for pixels in reader.frames():
            if max_frames is not None and len(frames) >= max_frames:
                break
            frames.append(torch.from_numpy(pixels))
        if not frames:
            raise MediaError(f"{path} has no frames; it is damaged or was not written completely")
        return torch.stack(frames), reader.fps


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are on show: seconds from the first one."""

    times: tuple[float, ...]  # ascending, from 0
    end: float  # of the last frame
    fps: float  # the file's average rate


def read_timeline(path: str | os.PathLike[str]) -> Timeline:
    """The times of all frames, by decoding them: headers are wrong about damaged files, and rates may vary.

    Raises MediaError if the file is not a readable video.
    """
    with _Reader(path) as reader:
        step = 1 / reader.fps
        times: list[float] = []
        last = step
        for frame in reader.container.decode(reader.stream):
            time = frame.time if frame.time is not None else (times[-1] + step if times else 0.0)
            times.append(max(float(time), times[-1] if times else float(time)))
            if frame.duration and frame.time_base:
                last = float(frame.duration * frame.time_base)
        if not times:
            raise MediaError(f"{path} has no frames; it is damaged or was not written completely")
        start = times[0]
        return Timeline(tuple(time - start for time in times), times[-1] - start + last, reader.fps)


def read_frames(path: str | os.PathLike[str], indices: Sequence[int]) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3], upright, of the frames with these ascending numbers; a number given twice gives its frame twice."""
    with _Reader(path) as reader:
        wanted = 0
        for number, frame in enumerate(reader.container.decode(reader.stream)):
            if wanted == len(indices):
                return
            if number == indices[wanted]:
                pixels = reader.pixels(frame)
                while wanted < len(indices) and indices[wanted] == number:
                    wanted += 1
                    yield pixels
        if wanted < len(indices):
            raise MediaError(f"{path} ended after {number + 1} frames, before frame {indices[wanted]}; it changed while it was read")


class _Reader:
    """An open video; errors inside its `with` block become MediaError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __enter__(self) -> _Reader:
        try:
            self.container = av.open(str(self.path))
        except (OSError, ValueError, av.error.FFmpegError) as error:
            raise read_error(self.path, error, kind="video") from error
        if not self.container.streams.video:
            self.container.close()
            raise MediaError(f"{self.path} has no pictures in it, only sound or text; name a video file")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.fps = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.container.close()
        if isinstance(error, av.error.FFmpegError):
            raise read_error(self.path, error, kind="video") from error

    def frames(self) -> Iterator[np.ndarray]:
        """Each frame as uint8 RGB [H, W, 3], upright."""
        for frame in self.container.decode(self.stream):
            yield self.pixels(frame)

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        # Older PyAV ignores the source's colour space unless it differs from the target's, which RGB does not have.
        rgb = frame.reformat(format="rgb24", src_colorspace=_colorspace(frame), dst_colorspace=Colorspace.ITU601)
        pixels = to_standard_range(rgb.to_ndarray(), int(frame.color_trc))
        return np.ascontiguousarray(np.rot90(pixels, -_clockwise_turns(frame)))


def _colorspace(frame: av.VideoFrame) -> int:
    tagged = int(frame.colorspace)
    known = {int(space) for space in (Colorspace.ITU709, Colorspace.FCC, Colorspace.ITU601, Colorspace.SMPTE170M, Colorspace.SMPTE240M)}
    if tagged in known:
        return tagged
    if tagged in _BT2020:
        return _SWS_BT2020
    return int(Colorspace.ITU709 if frame.height > _HD_ROWS else Colorspace.ITU601)


def _clockwise_turns(frame: av.VideoFrame) -> int:
    """Quarter turns that make the frame upright, from the container's display matrix (phones film lying on their side)."""
    # Iterating over the side data gives records or keys, by the version of PyAV.
    matrix: Any = cast(Any, frame.side_data).get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return 0
    a, b = np.frombuffer(bytes(matrix), dtype=np.int32)[:2]
    return round(math.degrees(math.atan2(b, a)) / 90) % 4


def _duration(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else None


def read_metadata(path: str | os.PathLike[str]) -> str | None:
    """The text given as `metadata` when the file (or folder of pictures) was written; None if it has none.

    Raises MediaError if the file cannot be read at all.
    """
    path = Path(path)
    if path.is_dir():
        pictures = sorted(path.glob("*.png"))
        return _picture_text(pictures[0]) if pictures else None
    if path.suffix.lower() in (".png", ".gif"):
        return _picture_text(path)
    with _Reader(path) as reader:
        # Matroska writes its tags in capitals.
        tags = {key.lower(): value for key, value in reader.container.metadata.items()}
        return tags.get(TEXT_KEY.lower())


def _picture_text(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            text = image.info.get(TEXT_KEY) or image.info.get("comment")
            return text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    except (OSError, SyntaxError, ValueError) as error:
        raise read_error(path, error, kind="picture") from error
