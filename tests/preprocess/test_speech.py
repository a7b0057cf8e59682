"""Speech from text: the small voice as installed, CosyVoice by its two conventions, and what is refused."""
from __future__ import annotations

import random
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from test_audio import tone, write_sound

from kinograph.errors import KinographError, MissingExtraError, RuntimeSetupError
from kinograph.media.audio import Sound
from kinograph.preprocess import speech
from kinograph.preprocess.speech import language_of, say, say_like, spoken
from kinograph.requests import SpeechToVideo


def has_library() -> bool:
    try:
        import espeakng_loader  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture(autouse=True)
def nothing_remembered():
    say.cache_clear()
    speech._say_like.cache_clear()


@pytest.mark.parametrize(
    ("text", "language"), [("hello", "en"), ("你好", "cmn"), ("こんにちは、世界", "ja"), ("안녕", "ko"), ("Привет", "ru"), ("été", "en")]
)
def test_language(text, language):
    assert language_of(text) == language


@pytest.fixture(params=["program", "library"])
def small_voice(request, monkeypatch):
    """One of the two ways to the small voice."""
    if request.param == "program" and shutil.which("espeak-ng") is None:
        pytest.skip("the program espeak-ng is not installed")
    if request.param == "library":
        if not has_library():
            pytest.skip("the package espeakng-loader is not installed")
        monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.mark.parametrize("text", ["The quick brown fox jumps over the lazy dog.", "你好，世界。今天天气很好。"])
def test_the_small_voice_speaks(text, small_voice):
    sound = say(text)
    loudness = sound.mono(16000).abs()
    assert 1 < sound.seconds < 6 and loudness.max() > 0.2
    assert (loudness > 0.02).float().mean() > 0.3  # speech, not a click
    say.cache_clear()
    assert torch.equal(say(text).samples, sound.samples)


def test_a_longer_text_takes_longer(small_voice):
    assert say("one two three four five six seven eight").seconds > 1.5 * say("one two three").seconds


def test_nothing_to_say(small_voice):
    with pytest.raises(KinographError, match=r"nothing to say in --tts_text '\.\.\.'"):
        say("...")


def test_without_any_voice(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"espeakng-loader, or the program espeak-ng.*pip install 'kinograph\[speech\]'"):
        say("hello")


def test_a_failing_voice(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: sys.executable)  # takes none of the flags
    with pytest.raises(RuntimeSetupError, match="espeak-ng could not say the text"):
        say("hello")


# ------------------------------------------------------------------------------------------------------- requests


def test_a_request_gets_its_speech(monkeypatch):
    monkeypatch.setattr(speech, "say", lambda text: Sound(samples=torch.zeros(1, len(text)), rate=5))
    request = spoken(SpeechToVideo(tts_text="hello", enable_tts=True, image="a.png"))
    assert request.audio.samples.shape == (1, 5) and request.image == "a.png"
    assert spoken(request) is request  # nothing is left to say


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tts_text": "hello", "audio": "a.wav"}, "both --audio and --tts_text"),
        ({"tts_text": "  "}, "--tts_text is empty"),
        ({"enable_tts": True}, "--enable_tts is for speech made from a text; give the text with --tts_text"),
        ({"tts_prompt_audio": "a.wav"}, "--tts_prompt_audio is for speech made from a text"),
        ({"tts_prompt_text": "hello"}, "--tts_prompt_text is for speech made from a text"),
        ({"tts_text": "hello", "tts_prompt_text": "hello"}, "give the sample with --tts_prompt_audio"),
        ({"tts_text": "hello", "tts_prompt_audio": "none.wav"}, "there is no sound none.wav"),
    ],
)
def test_refused(fields, sentence):
    with pytest.raises(KinographError, match=re.escape(sentence)):
        spoken(SpeechToVideo(**fields))


@pytest.mark.parametrize(
    ("seconds", "rate", "sentence"),
    [(5, 8000, "has 8000 samples a second; give one with at least 16000"), (0.5, 16000, "lasts 0.5 s"), (31, 16000, "lasts 31.0 s")],
)
def test_voices_that_will_not_do(seconds, rate, sentence, tmp_path):
    path = write_sound(tmp_path / "voice.wav", tone(seconds, rate), rate)
    with pytest.raises(KinographError, match=re.escape(sentence)):
        say_like("hello", path)


# ------------------------------------------------------------------------------------------------- a copied voice


class Older:
    """CosyVoice2 up to December 2025: the sample is a wave at 16 kHz. Speech is of random length, in two parts."""

    sample_rate = 24000

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def inference_zero_shot(self, tts_text, prompt_text, prompt_speech_16k, stream=False):
        assert isinstance(prompt_speech_16k, torch.Tensor) and prompt_speech_16k.dtype is torch.float32
        yield from self._parts(len(tts_text) + len(prompt_text), prompt_speech_16k.shape[1])

    def inference_cross_lingual(self, tts_text, prompt_speech_16k, stream=False):
        yield from self._parts(len(tts_text), prompt_speech_16k.shape[1])

    def _parts(self, length, heard):
        yield {"tts_speech": torch.full((1, length), float(heard))}
        yield {"tts_speech": torch.rand(1, 100 + random.randrange(100))}


class Newer(Older):
    """Later: the path of the sample."""

    def inference_zero_shot(self, tts_text, prompt_text, prompt_wav, stream=False):
        yield from self._parts(len(tts_text) + len(prompt_text), Path(prompt_wav).stat().st_size > 0)

    def inference_cross_lingual(self, tts_text, prompt_wav, stream=False):
        yield from self._parts(len(tts_text), Path(prompt_wav).stat().st_size > 0)


@pytest.mark.parametrize("version", [Older, Newer])
@pytest.mark.parametrize("sample_text", [None, "abc"])
def test_cosy_voice(version, sample_text, tmp_path, monkeypatch):
    module = types.ModuleType("cosyvoice.cli.cosyvoice")
    module.CosyVoice2 = version
    for name in ("cosyvoice", "cosyvoice.cli"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "cosyvoice.cli.cosyvoice", module)
    monkeypatch.chdir(tmp_path)
    voice = write_sound(tmp_path / "voice.wav", tone(2, 22050), 22050)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    sound = say_like("hello", voice, sample_text)
    assert torch.equal(torch.get_rng_state(), before)
    assert sound.rate == 24000
    length = 5 + len(sample_text or "")
    assert sound.samples[0, :length].eq(32000 if version is Older else 1).all() and sound.samples.shape[1] > length + 99
    speech._say_like.cache_clear()
    np.random.seed(1)
    assert torch.equal(say_like("hello", voice, sample_text).samples, sound.samples)


def test_without_cosy_voice(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cosyvoice", None)
    monkeypatch.chdir(tmp_path)
    voice = write_sound(tmp_path / "voice.wav", tone(2, 16000), 16000)
    with pytest.raises(RuntimeSetupError, match=r"needs CosyVoice .*clone https://github.com/FunAudioLLM/CosyVoice"):
        say_like("hello", voice)
