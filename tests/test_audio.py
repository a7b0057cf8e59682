"""Sound read from any file: the stored results of the published loader, other formats, and what is said of bad files."""
from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from reference import assert_close, case, tensors

from kinograph.errors import MediaError, MissingExtraError
from kinograph.media import encoders
from kinograph.media.audio import Sound, read_audio, read_sound, resample
from kinograph.media.video import probe, write_video

CASE = case("s2v_audio_load")


def write_sound(path: Path, pcm: np.ndarray, rate: int, codec: str = "pcm_s16le") -> Path:
    """int16 `pcm` [channels, samples] in a file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono" if len(pcm) == 1 else "stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm.T).reshape(1, -1), format="s16", layout=stream.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        convert = av.AudioResampler(format=stream.codec_context.format, layout=stream.layout, rate=rate, frame_size=stream.frame_size)
        for part in [*convert.resample(frame), *convert.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """A sweep that grows louder, so that no stretch of it resembles another."""
    t = np.arange(round(seconds * rate)) / rate
    wave = np.sin(2 * np.pi * (200 + 300 * t) * t) * (0.2 + 0.6 * t / seconds)
    return np.repeat((wave * 32767).astype(np.int16)[None], channels, axis=0)


@pytest.mark.parametrize("entry", CASE["entries"], ids=lambda entry: f"{entry['sample_rate']}")
def test_golden(entry, tmp_path):
    data = tensors("s2v_audio_load", "data.safetensors")
    path = write_sound(tmp_path / "sound.wav", data[f"{entry['index']}.pcm"].numpy(), entry["sample_rate"])
    wave = read_audio(path)
    assert wave.dtype is torch.float32 and len(wave) == entry["samples_16k"]
    assert_close(wave, data[f"{entry['index']}.wave16k"], CASE["tolerance"], "wave")


@pytest.mark.parametrize(
    "name, codec, rate, channels",
    [
        ("a.flac", "flac", 44100, 2),
        ("a.mp3", "libmp3lame", 44100, 2),
        ("a.m4a", "aac", 48000, 1),
        ("a.opus", "libopus", 48000, 1),
        ("a.mkv", "aac", 32000, 2),
        ("a.wav", "pcm_s24le", 8000, 1),
    ],
)
def test_any_format(name, codec, rate, channels, tmp_path):
    pcm = tone(1.0, rate, channels)
    try:
        path = write_sound(tmp_path / name, pcm, rate, codec)
    except ValueError:
        pytest.skip(f"this PyAV has no {codec}")
    wave = read_audio(path)
    expected = resample(torch.from_numpy(pcm[0].astype(np.float32) / 32768), rate, 16000)
    common = min(len(wave), len(expected))
    assert abs(len(wave) - len(expected)) < 1600  # a compressed file may end with the rest of its last frame
    assert torch.corrcoef(torch.stack([wave[:common], expected[:common]]))[0, 1] > 0.98  # also: no delay


def test_bad_files(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("not a sound at all, " * 50)
    write_video(tmp_path / "mute.mp4", torch.zeros(3, 32, 32, 3, dtype=torch.uint8), 16)
    whole = write_sound(tmp_path / "whole.wav", tone(0.5, 16000), 16000)
    (tmp_path / "header.wav").write_bytes(whole.read_bytes()[:44])
    for name, message in [
        ("missing.wav", "there is no sound"),
        ("empty.wav", "is empty"),
        ("text.mp3", "cannot read .* as a sound"),
        ("mute.mp4", "has no sound track"),
        ("header.wav", "without any sound|cannot read"),
    ]:
        with pytest.raises(MediaError, match=message):
            read_audio(tmp_path / name)
    with pytest.raises(MediaError, match="is a folder"):
        read_audio(tmp_path)


def test_without_soxr(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    assert len(read_audio(write_sound(tmp_path / "a.wav", tone(0.1, 16000), 16000))) == 1600
    with pytest.raises(MissingExtraError, match=r"pip install 'kinograph\[speech\]'"):
        read_audio(write_sound(tmp_path / "b.wav", tone(0.1, 8000), 8000))


# ------------------------------------------------------------------------------------------------- sound in a video


def bursts(seconds: float, rate: int, channels: int) -> Sound:
    """20 ms of a tone, left at whole seconds and right at half ones, whose beginnings can be found again."""
    t = np.arange(round(seconds * rate)) / rate
    tone = 0.8 * np.sin(2 * np.pi * 1000 * t)
    sides = [tone * ((t - shift) % 1.0 < 0.02) for shift in (0.25, 0.75)]
    samples = np.stack(sides) if channels == 2 else np.stack([sum(sides)] * channels)
    return Sound(samples=torch.from_numpy(samples.astype(np.float32)), rate=rate)


def begins(wave: torch.Tensor, rate: int) -> list[float]:
    """Seconds at which a burst begins."""
    loud = (wave.abs() > 0.3).nonzero().flatten()
    first = torch.cat([loud[:1], loud[1:][loud.diff() > 0.1 * rate]])
    return (first / rate).tolist()


@pytest.mark.parametrize(
    "name, rate, channels", [("a.mp4", 16000, 1), ("a.mp4", 44100, 2), ("a.mov", 8000, 1), ("a.webm", 22050, 2), ("a.mp4", 48000, 6)]
)
def test_sound_keeps_time(name, rate, channels, tmp_path):
    """Over the whole length, in chunks of frames, to a hundredth of a second: a frame is six."""
    frames, fps = torch.zeros(40, 32, 32, 3, dtype=torch.uint8), 16
    path = write_video(tmp_path / name, [frames] * 4, fps, sound=bursts(10, rate, channels))
    written = read_sound(path)
    assert len(written.samples) == min(channels, 2) if channels <= 2 else len(written.samples) == 1
    assert abs(written.seconds - 10) < 1 / fps
    offsets = [0.25, 0.75] if channels == 2 else [None]
    for wave, offset in zip(written.samples, offsets):
        expected = [k / 2 + 0.25 for k in range(20)] if offset is None else [k + offset for k in range(10)]
        assert begins(wave, written.rate) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("seconds", [0.3, 5.0])
def test_sound_is_as_long_as_the_video(seconds, tmp_path):
    """Longer sound is cut, shorter sound ends in silence."""
    sound = Sound(samples=torch.full((1, round(seconds * 48000)), 0.5) * torch.randn(1, round(seconds * 48000)).sign(), rate=48000)
    path = write_video(tmp_path / "a.mp4", torch.zeros(33, 32, 32, 3, dtype=torch.uint8), 16, sound=sound)
    written, video = read_sound(path), probe(path)
    assert video.num_frames == 33 and video.has_audio
    assert abs(written.seconds - 33 / 16) < 1 / 16
    quiet = written.samples[0, round((seconds + 0.05) * written.rate) :]
    assert not len(quiet) or quiet.abs().max() < 0.01
    assert written.samples[0, : round(min(seconds, 2) * written.rate)].std() > 0.2


def test_formats_without_sound_stay_silent(tmp_path):
    frames = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
    for name in ("a.gif", "folder"):
        assert write_video(tmp_path / name, frames, 16, sound=bursts(1, 16000, 1)).exists()


def test_a_failing_sound_leaves_no_file(tmp_path, monkeypatch):
    def fail(self, time):
        raise av.error.InvalidDataError(22, "no")

    monkeypatch.setattr(encoders.SoundTrack, "play_until", fail)
    with pytest.raises(MediaError, match="cannot write"):
        write_video(tmp_path / "a.mp4", torch.zeros(3, 32, 32, 3, dtype=torch.uint8), 16, sound=bursts(1, 16000, 1))
    assert list(tmp_path.iterdir()) == []


def test_the_sound_of_a_video_has_its_channels_and_rate(tmp_path):
    path = write_sound(tmp_path / "a.wav", tone(0.5, 22050, 2), 22050)
    sound = read_sound(path)
    assert (list(sound.samples.shape), sound.rate, sound.seconds) == ([2, 11025], 22050, 0.5)


def test_sound_that_begins_after_the_pictures(tmp_path):
    """A track that starts 0.5 s late, as cameras write it, is read with 0.5 s of silence before it."""
    whole = write_video(tmp_path / "a.mkv.mp4", torch.zeros(32, 32, 32, 3, dtype=torch.uint8), 16, sound=bursts(2, 48000, 1))
    with av.open(str(whole)) as source, av.open(str(tmp_path / "late.mkv"), "w") as late:
        streams = {stream.index: late.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                shift = round(0.5 / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = streams[packet.stream.index]
            late.mux(packet)
    found = begins(read_sound(tmp_path / "late.mkv").samples[0], 48000)
    assert found[:3] == pytest.approx([0.75, 1.25, 1.75], abs=0.02)


def test_a_damaged_mp3(tmp_path):
    try:
        path = write_sound(tmp_path / "a.mp3", tone(1.0, 44100, 1), 44100, "libmp3lame")
    except ValueError:
        pytest.skip("this PyAV has no libmp3lame")
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    path.write_bytes(generator.integers(0, 255, len(data), dtype=np.uint8).tobytes())
    with pytest.raises(MediaError, match=r"cannot read .*a\.mp3 as a sound"):
        read_sound(path)
