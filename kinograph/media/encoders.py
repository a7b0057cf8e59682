"""One writer per kind of output, all alike: built with the path to write, then `add(frames)`, then `finish()` or `abandon()`.

`add` takes uint8 [T, H, W, 3] arrays; `text` is kept in the file where `metadata.read_text` finds it again.
"""
from __future__ import annotations

import contextlib
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Protocol, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.reformatter import Colorspace, Interpolation
from av.video.stream import VideoStream
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kinograph.errors import MediaError
from kinograph.media.audio import Sound

TEXT_KEY = "Comment"  # a registered PNG keyword; containers call the same thing "comment"
# Visually lossless for generated video, and about the quality setting of the published code or better. x264 makes 4:2:0 with these presets
# the High profile by itself; the option for it is spelled differently in each version of the library.
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    ".mp4": ("libx264", {"crf": "17", "preset": "medium"}),
    ".mov": ("libx264", {"crf": "17", "preset": "medium"}),
    ".webm": ("libvpx-vp9", {"crf": "22", "row-mt": "1", "deadline": "good", "cpu-used": "2"}),
}
SOUND_CODECS = {".mp4": "aac", ".mov": "aac", ".webm": "libopus"}
SUFFIXES = (*CODECS, ".gif", ".png")
_BT709 = {"color_primaries": "bt709", "color_trc": "bt709", "colorspace": "bt709", "color_range": "tv"}
_KEYFRAME_SECONDS = 2  # players seek to key frames; the encoders' default of 250 frames is longer than most clips


class Encoder(Protocol):
    def add(self, frames: np.ndarray) -> None: ...

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


def make_encoder(path: Path, *, kind: str, fps: float, text: str | None, sound: Sound | None = None) -> Encoder:
    """The writer for `kind`: a suffix of `SUFFIXES`, or "" for a folder of pictures. Only those of `CODECS` can hold a sound."""
    if kind in CODECS:
        return VideoFile(path, suffix=kind, fps=fps, text=text, sound=sound)
    if kind == ".gif":
        return AnimatedGif(path, fps=fps, text=text)
    if kind == ".png":
        return Picture(path, text=text)
    return Folder(path, text=text)


class VideoFile:
    """H.264 or VP9, 8-bit 4:2:0, BT.709 in limited range and tagged so: what every player and browser expects."""

    def __init__(
        self,
        path: Path,
        *,
        suffix: str,
        fps: float,
        text: str | None,
        sound: Sound | None = None,
        quality: Mapping[str, str] | None = None,
    ) -> None:
        """`quality`: the codec's own options, in place of those in `CODECS`."""
        # faststart puts the index first, so that a browser can start before it has the whole file.
        # QuickTime's own comment atom ends at 64 kB and its text encoding is a guess; its metadata keys are UTF-8.
        movflags = {".mp4": "+faststart", ".mov": "+faststart+use_metadata_tags"}.get(suffix)
        self._container = av.open(str(path), "w", options={"movflags": movflags} if movflags else {})
        if text:
            self._container.metadata[TEXT_KEY.lower()] = text
        codec, options = CODECS[suffix]
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = cast(VideoStream, self._container.add_stream(codec, rate=rate, options={**(quality or options), **_BT709}))
        self._stream.pix_fmt = "yuv420p"
        self._stream.bit_rate = 0  # quality alone decides; with a bit rate set, VP9 would treat it as a ceiling
        self._stream.codec_context.gop_size = max(1, round(_KEYFRAME_SECONDS * fps))
        self._seconds_per_frame = 1 / rate
        self._num_frames = 0
        self._track = None if sound is None else SoundTrack(self._container, sound, codec=SOUND_CODECS[suffix])

    def add(self, frames: np.ndarray) -> None:
        for pixels in frames:
            if self._num_frames == 0:
                self._stream.height, self._stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            # The library converts with BT.601 unless told, which shifts greens and reds in every player. AREA averages
            # the 2 x 2 pixels of a chroma sample; the default filter is off by up to one more level.
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=Interpolation.AREA)
            frame.pts = self._num_frames
            frame.time_base = self._seconds_per_frame
            self._mux(frame)
            self._num_frames += 1
            if self._track is not None:
                self._track.play_until(self._num_frames * self._seconds_per_frame)

    def finish(self) -> None:
        self._mux(None)
        if self._track is not None:
            self._track.finish()
        self._container.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError, ValueError, av.error.FFmpegError):  # closing writes an index, which may fail again
            self._container.close()

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


class SoundTrack:
    """The sound of a video, encoded as far as the pictures have come: cut, or followed by silence, where they end."""

    _RATE = 48000  # for sounds of other rates than `_KEPT_RATES`: Opus knows no other, and a block of AAC is short then
    _KEPT_RATES = (("aac", 32000), ("aac", 44100))
    _BITS_PER_CHANNEL = 96000

    def __init__(self, container: OutputContainer, sound: Sound, *, codec: str) -> None:
        rate = sound.rate if (codec, sound.rate) in self._KEPT_RATES else self._RATE
        self._samples = _resampled(sound, rate)
        self._layout = "mono" if len(self._samples) == 1 else "stereo"
        self._container = container
        self._stream = cast(AudioStream, container.add_stream(codec, rate=rate, layout=self._layout))
        self._stream.bit_rate = self._BITS_PER_CHANNEL * len(self._samples)
        self._stream.time_base = Fraction(1, rate)
        self._convert = av.AudioResampler(format=self._stream.codec_context.format, layout=self._layout, rate=rate)
        self._fifo = av.AudioFifo()
        self._rate, self._played = rate, 0

    def play_until(self, time: Fraction) -> None:
        """Encodes the sound up to `time`, in seconds from the start, but for a rest shorter than a block."""
        end = int(time * self._rate)
        part = self._samples[:, self._played : end]
        part = np.pad(part, ((0, 0), (0, end - self._played - part.shape[1])))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._played, Fraction(1, self._rate)
        self._played = end
        for converted in self._convert.resample(frame):
            self._fifo.write(converted)
        while block := self._fifo.read(self._block_size()):
            self._mux(block)

    def finish(self) -> None:
        if rest := self._fifo.read(partial=True):
            self._mux(rest)
        self._mux(None)

    def _block_size(self) -> int:
        context = self._stream.codec_context
        if not context.is_open:
            context.open()
        return context.frame_size

    def _mux(self, block: av.AudioFrame | None) -> None:
        for packet in self._stream.encode(block):
            self._container.mux(packet)


def _resampled(sound: Sound, rate: int) -> np.ndarray:
    """float32 [1 or 2, n] within -1 to 1; more than two channels become one."""
    samples = sound.samples.detach().cpu().float().numpy()
    if len(samples) > 2:
        samples = samples.mean(axis=0, keepdims=True)
    if sound.rate != rate:
        layout = "mono" if len(samples) == 1 else "stereo"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, 0, Fraction(1, sound.rate)
        change = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        samples = np.concatenate([part.to_ndarray() for part in [*change.resample(frame), *change.resample(None)]], axis=1)
    return samples.clip(-1, 1)


class AnimatedGif:
    """A looping GIF: one palette from the whole clip, so that colours do not flicker, and dithered."""

    _PALETTE_FRAMES = 16
    _MIN_CENTISECONDS = 2  # viewers slow anything faster down to 10 frames per second

    def __init__(self, path: Path, *, fps: float, text: str | None) -> None:
        self._path, self._fps, self._text = path, fps, text
        self._frames: list[Image.Image] = []

    def add(self, frames: np.ndarray) -> None:
        self._frames.extend(Image.fromarray(pixels) for pixels in frames)

    def finish(self) -> None:
        palette = self._palette()
        first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in self._frames]
        comment = {"comment": self._text.encode()} if self._text else {}
        first.save(
            self._path, format="GIF", save_all=True, append_images=rest, duration=self._durations(), loop=0, optimize=False, **comment
        )

    def abandon(self) -> None:
        self._frames.clear()

    def _palette(self) -> Image.Image:
        picks = np.linspace(0, len(self._frames) - 1, min(self._PALETTE_FRAMES, len(self._frames))).round().astype(int)
        sample = np.concatenate([np.asarray(self._frames[i]) for i in picks])
        return Image.fromarray(sample).quantize(colors=256, method=Image.Quantize.MEDIANCUT)

    def _durations(self) -> list[int]:
        """Milliseconds per frame: whole centiseconds, which is all a GIF can say, spread so that they add up."""
        ends = [round(100 * i / self._fps) for i in range(len(self._frames) + 1)]
        return [10 * max(self._MIN_CENTISECONDS, end - start) for start, end in pairwise(ends)]


class Picture:
    """A single PNG."""

    def __init__(self, path: Path, *, text: str | None) -> None:
        self._path, self._text = path, text
        self._written = False

    def add(self, frames: np.ndarray) -> None:
        if len(frames) + self._written > 1:
            raise MediaError("a .png holds one frame and this video has more; write to .mp4, or to a folder name for one picture per frame")
        for pixels in frames:
            _save_png(self._path, pixels, self._text)
            self._written = True

    def finish(self) -> None:
        pass  # each picture is complete when added

    def abandon(self) -> None:
        pass


class Folder:
    """PNGs 00001.png, 00002.png, ...; each holds the text, so that a picture taken out of the folder keeps it."""

    def __init__(self, path: Path, *, text: str | None) -> None:
        self._path, self._text = path, text
        self._path.mkdir()
        self._num_frames = 0

    def add(self, frames: np.ndarray) -> None:
        for pixels in frames:
            self._num_frames += 1
            _save_png(self._path / f"{self._num_frames:05d}.png", pixels, self._text)

    def finish(self) -> None:
        pass  # each picture is complete when added

    def abandon(self) -> None:
        pass


def _save_png(path: Path, pixels: np.ndarray, text: str | None) -> None:
    info = PngInfo()
    if text:
        info.add_itxt(TEXT_KEY, text)
    Image.fromarray(pixels).save(path, format="PNG", pnginfo=info, compress_level=4)
