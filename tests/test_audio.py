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
from kinograph.media.audio import read_audio, resample
from kinograph.media.video import write_video

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
