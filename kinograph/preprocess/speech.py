"""Speech from text, for `tasks.s2v`: `spoken(request)` says the text of a request, before anything is planned.

    a text alone              espeak-ng: small, offline, many languages, and plainly a machine
    a text and a sample       CosyVoice2, if it is installed: the voice of the sample

The same text, and sample, give the same speech.
"""
from __future__ import annotations

import inspect
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from kinograph.errors import MediaError, MissingExtraError, RequestError, RuntimeSetupError
from kinograph.media.audio import Sound, read_sound
from kinograph.preprocess import espeak
from kinograph.requests import SpeechToVideo

WORDS_PER_MINUTE = 160
SAMPLE_SECONDS = (1.0, 30.0)  # of a voice; CosyVoice takes no longer one, and of a shorter one there is nothing to copy
SAMPLE_RATE = 16000  # that a sample must have at least: what CosyVoice hears at
SEED = 0

# Script -> language of espeak-ng; what is in none of these is read as English.
_SCRIPTS = (
    ("ja", (("぀", "ヿ"),)),  # before Chinese: Japanese has its characters too
    ("cmn", (("一", "鿿"), ("㐀", "䶿"))),
    ("ko", (("가", "힯"),)),
    ("ru", (("Ѐ", "ӿ"),)),
    ("el", (("Ͱ", "Ͽ"),)),
    ("ar", (("؀", "ۿ"),)),
    ("hi", (("ऀ", "ॿ"),)),
)


def spoken(request: SpeechToVideo) -> SpeechToVideo:
    """`request` with the sound of its text in place of the text; as it is where it has none."""
    if request.tts_text is None:
        _refuse_settings_without_text(request)
        return request
    if request.audio is not None:
        raise RequestError("there are both --audio and --tts_text, and the person can only say one of them; leave one out")
    if not request.tts_text.strip():
        raise RequestError("--tts_text is empty; give the words to say")
    if request.tts_prompt_audio is None:
        if request.tts_prompt_text is not None:
            raise RequestError("--tts_prompt_text is what a sample of a voice says; give the sample with --tts_prompt_audio FILE")
        sound = say(request.tts_text)
    else:
        sound = say_like(request.tts_text, request.tts_prompt_audio, request.tts_prompt_text)
    return replace(request, audio=sound, tts_text=None, enable_tts=False, tts_prompt_audio=None, tts_prompt_text=None)


def _refuse_settings_without_text(request: SpeechToVideo) -> None:
    for field in ("enable_tts", "tts_prompt_audio", "tts_prompt_text"):
        if getattr(request, field):
            raise RequestError(f"--{field} is for speech made from a text; give the text with --tts_text")


def language_of(text: str) -> str:
    """The language that espeak-ng is to read `text` in, from its script."""
    return next(
        (name for name, ranges in _SCRIPTS if any(low <= char <= high for char in text for low, high in ranges)), "en"
    )


# --------------------------------------------------------------------------------------------------- the small voice


@lru_cache(maxsize=8)
def say(text: str) -> Sound:
    """`text` in the voice of espeak-ng: the program if it is installed, else the library of the package espeakng-loader."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = _small_voice(language_of(text), path)
        run = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
        if run.returncode or not path.exists():
            reason = run.stderr.decode(errors="replace").strip() or f"exit status {run.returncode}"
            raise RuntimeSetupError(f"espeak-ng could not say the text ({reason}); install espeak-ng, or espeakng-loader, anew")
        try:
            sound = read_sound(path)
        except MediaError:  # a file without a sample
            sound = None
    if sound is None or not sound.samples.any():
        raise RequestError(f"there is nothing to say in --tts_text {text[:60]!r}; give words")
    return sound


def _small_voice(language: str, out: Path) -> list[str]:
    """The command that says its standard input into the file `out`."""
    if program := shutil.which("espeak-ng"):
        return [program, "-v", language, "-s", str(WORDS_PER_MINUTE), "-b", "1", "--stdin", "-w", str(out)]
    try:
        import espeakng_loader
    except ImportError as error:
        raise MissingExtraError("saying a text", "espeakng-loader, or the program espeak-ng,", "speech") from error
    library, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    return [sys.executable, espeak.__file__, library, data, language, str(WORDS_PER_MINUTE), str(out)]


# ---------------------------------------------------------------------------------------------------- a copied voice


def say_like(text: str, sample: str | os.PathLike[str], sample_text: str | None = None) -> Sound:
    """`text` in the voice of the file `sample`, in which `sample_text` is said. Raises for a sample that will not do."""
    path = Path(sample)
    check_sample(path)
    return _say_like(text, path.absolute(), path.stat().st_mtime_ns, sample_text)


def check_sample(path: Path) -> None:
    """Raises MediaError for a voice that CosyVoice would refuse, or could not copy."""
    voice = read_sound(path)
    shortest, longest = SAMPLE_SECONDS
    if voice.rate < SAMPLE_RATE:
        raise MediaError(f"the voice {path} has {voice.rate} samples a second; give one with at least {SAMPLE_RATE}")
    if not shortest <= voice.seconds <= longest:
        raise MediaError(
            f"the voice {path} lasts {voice.seconds:.1f} s; give a sample of {shortest:g} to {longest:g} s, best of 5 to 15"
        )


@lru_cache(maxsize=8)
def _say_like(text: str, sample: Path, changed: int, sample_text: str | None) -> Sound:
    """`changed` is when the sample was written: a new one is not taken for the old."""
    model = _cosy_voice()
    method = model.inference_zero_shot if sample_text else model.inference_cross_lingual
    texts = [text, sample_text] if sample_text else [text]
    # CosyVoice was changed to read the file itself, at two rates.
    reads_file = "prompt_wav" in inspect.signature(method).parameters
    voice = str(sample) if reads_file else read_sound(sample).mono(SAMPLE_RATE)[None]
    with _seeded():
        parts = [part["tts_speech"].float().cpu() for part in method(*texts, voice)]
    if not parts:
        raise RuntimeSetupError(f"CosyVoice made no speech of --tts_text {text[:60]!r}; give other words, or leave --tts_prompt_audio out")
    return Sound(samples=torch.cat(parts, dim=1), rate=int(model.sample_rate))


def _cosy_voice() -> Any:
    """The published CosyVoice2-0.5B, through the repository CosyVoice if that lies in the working directory."""
    for folder in ("CosyVoice", "CosyVoice/third_party/Matcha-TTS"):
        path = os.path.abspath(folder)
        if os.path.isdir(path) and path not in sys.path:
            sys.path.append(path)
    try:
        from cosyvoice.cli.cosyvoice import CosyVoice2
    except ImportError as error:
        raise RuntimeSetupError(
            f"speaking in the voice of --tts_prompt_audio needs CosyVoice ({error}); clone https://github.com/FunAudioLLM/CosyVoice "
            "with its submodules into this folder and install its requirements, or leave the sample out for the built-in voice"
        ) from error
    name = "CosyVoice2-0.5B"
    return CosyVoice2(name if Path(name).is_dir() else f"iic/{name}")


@contextmanager
def _seeded() -> Iterator[None]:
    """Random numbers that are the same each time, and those of the caller as they were."""
    state = random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        random.seed(SEED)
        try:
            yield
        finally:
            random.setstate(state)
