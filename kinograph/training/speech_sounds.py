"""What talkers say and how it is heard: synthetic syllables, waves of espeak-ng, loudness and vowel colour.

    babble           made here: vowels as sums of harmonics under two formants, noise for consonants, pauses
    espeak_waves     sentences spoken by the program espeak-ng, where it is installed
    loudness         how loud each video frame is, in [0, 1]: drawn as the mouth's opening, and what judges compare it with
    vowel_colour     where the spectrum of each frame lies, in [0, 1]: dark ("oo") to bright ("ee"): drawn as the mouth's width

Waves are float32 numpy arrays at 16 kHz. Frame k of a video sounds from k/16 s on.
"""
from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kinograph.errors import MissingExtraError
from kinograph.models.wav2vec2 import SAMPLE_RATE, normalise

FPS = 16
WINDOW = SAMPLE_RATE // FPS  # samples of one video frame
FULL_LEVEL = 2.4  # root mean square of a frame that counts as 1, where the whole wave has 1
_BANDS_HZ = (250.0, 3600.0)
_COLOUR_HZ = (450.0, 1700.0)  # mean frequencies that count as 0 and 1

# First and second formant in Hz.
_VOWELS = ((730, 1090), (530, 1840), (270, 2290), (570, 840), (300, 870), (490, 1350), (660, 1720))

_SUBJECTS = ("the old captain", "my sister", "a tall woman", "the green parrot", "our neighbour", "every child", "the baker", "nobody",
             "a friend of mine", "the orchestra", "that little dog", "the professor")  # fmt: skip
_VERBS = ("walks over", "looks at", "talks about", "dreams of", "paints", "carries home", "sings to", "remembers", "laughs about",
          "waits for", "counts", "forgot")  # fmt: skip
_OBJECTS = ("the blue mountain", "a cup of tea", "seven wooden boats", "the evening news", "an enormous cake", "the moon", "two hats",
            "a very long letter", "the river in winter", "his own shadow", "the music of the sea", "a yellow bicycle")  # fmt: skip
_VOICES = ("en", "en-us", "en-gb-scotland", "de", "es", "it", "fr")
_VARIANTS = ("", "+f2", "+f4", "+m2", "+m5", "+f3")


# ------------------------------------------------------------------------------------------------------------- waves


def babble(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A train of syllables with pauses between words: [seconds * 16000] float32."""
    base, parts, total = rng.uniform(90, 250), [], 0
    wanted = round(seconds * SAMPLE_RATE)
    while total < wanted:
        word = [_syllable(base, rng) for _ in range(rng.integers(1, 5))]
        pause = np.zeros(int(SAMPLE_RATE * (rng.uniform(0.5, 1.3) if rng.random() < 0.25 else rng.uniform(0.03, 0.25))))
        parts += [*word, pause]
        total += sum(map(len, word)) + len(pause)
    wave = np.concatenate(parts)[:wanted]
    return (wave + rng.normal(0, 10 ** rng.uniform(-4, -2.7), wanted)).astype(np.float32)


def _syllable(base: float, rng: np.random.Generator) -> np.ndarray:
    gain = rng.uniform(0.25, 1.0)
    consonant = rng.normal(0, 1, int(SAMPLE_RATE * rng.uniform(0.02, 0.09)))
    consonant = np.diff(consonant, append=0.0) * np.hanning(len(consonant)) * rng.uniform(0.02, 0.12)
    count = int(SAMPLE_RATE * rng.uniform(0.09, 0.32))
    time = np.arange(count) / SAMPLE_RATE
    pitch = base * rng.uniform(0.85, 1.2) * (1 + rng.uniform(-0.25, 0.25) * time)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    formants = np.array(_VOWELS[rng.integers(len(_VOWELS))]) * rng.uniform(0.92, 1.12)
    orders = np.arange(1, int(4000 / pitch.max()) + 1)
    height = orders * pitch.mean()
    level = sum(np.exp(-(((height - formant) / (110 + 0.06 * formant)) ** 2)) / (1 + i) for i, formant in enumerate(formants))
    level = (level + 0.02) / orders**0.35
    voice = (np.sin(orders[:, None] * phase) * level[:, None]).sum(0)
    attack = np.minimum(1, np.minimum(time / 0.03, time[::-1] / 0.06))
    voice *= attack / (np.sqrt(np.mean(voice**2)) + 1e-6) * 0.3
    return gain * np.concatenate([consonant, voice])


def espeak_waves(seconds: float, seed: int) -> list[np.ndarray]:
    """Sentences of espeak-ng in several voices, together at least `seconds` long. Raises MissingExtraError without it."""
    if shutil.which("espeak-ng") is None:
        raise MissingExtraError("speech for training", "the program espeak-ng", "speech")
    from kinograph.media.audio import read_audio  # here, as training from saved waves needs no library that decodes

    rng, waves, total = np.random.default_rng(seed), [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spoken.wav"
        while total < seconds:
            sentences = [" ".join(str(rng.choice(words)) for words in (_SUBJECTS, _VERBS, _OBJECTS)) for _ in range(2)]
            voice = str(rng.choice(_VOICES)) + str(rng.choice(_VARIANTS))
            options = ["-v", voice, "-s", str(rng.integers(120, 190)), "-p", str(rng.integers(25, 75)), "-w", str(file)]
            subprocess.run(["espeak-ng", *options, ". ".join(sentences)], check=True, capture_output=True)
            waves.append(read_audio(file).numpy())
            total += len(waves[-1]) / SAMPLE_RATE
    return waves


def save_waves(waves: list[np.ndarray], file: str | Path) -> None:
    """Several waves in one file, as 16-bit integers at a common peak of each."""
    pieces = [np.round(wave / max(1e-6, float(np.abs(wave).max())) * 32000).astype(np.int16) for wave in waves]
    np.savez(file, lengths=np.array([len(piece) for piece in pieces]), samples=np.concatenate(pieces))


def load_waves(file: str | Path) -> list[np.ndarray]:
    stored = np.load(file)
    ends = np.cumsum(stored["lengths"])
    return [part.astype(np.float32) / 32768 for part in np.split(stored["samples"], ends[:-1])]


# ----------------------------------------------------------------------------------------------------- what is heard


def frames_of(num_samples: int) -> int:
    """Video frames that a wave lasts, the last one perhaps not full."""
    return -(-num_samples // WINDOW)


def loudness(wave: Tensor, *, step: int = WINDOW, delay: int = 0) -> Tensor:
    """[n] in [0, 1] for a wave [samples] of any level: frame k hears the sound around sample k * `step` + 500, the middle of 1/16 s; or
    `delay` samples earlier.

    The root mean square under a soft window, relative to that of the whole wave; compressed, so that quiet syllables move
    the mouth too; what is 30 dB below is silence.
    """
    power = F.pad(normalise(wave.float()[None])[0].square(), (WINDOW + delay, 2 * WINDOW))
    window = torch.hann_window(3 * WINDOW, device=wave.device)  # its middle half, which counts most, is 94 ms
    count = -(-wave.shape[0] // step)
    level = F.conv1d(power[None, None], (window / window.sum())[None, None], stride=step)[0, 0, :count].clamp(min=0).sqrt()
    return ((level - 0.06) / (FULL_LEVEL - 0.06)).clamp(0, 1) ** 0.6


def vowel_colour(wave: Tensor, *, step: int = WINDOW) -> Tensor:
    """[n] in [0, 1] for a wave [samples]: the mean frequency of each frame's sound; 0.5 in silence."""
    count = -(-wave.shape[0] // step)
    size = 1024
    early = (size - WINDOW) // 2  # so that the middle is the frame's
    padded = F.pad(wave.float(), (early, size + WINDOW))
    frames = padded.unfold(0, size, step)[:count] * torch.hann_window(size, device=wave.device)
    power = torch.fft.rfft(frames).abs().square()
    hertz = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE, device=wave.device)
    power = power * ((hertz >= _BANDS_HZ[0]) & (hertz <= _BANDS_HZ[1]))
    mean = (power.sqrt() * hertz).sum(1) / (power.sqrt().sum(1) + 1e-9)
    colour = ((mean.clamp(min=1).log() - np.log(_COLOUR_HZ[0])) / np.log(_COLOUR_HZ[1] / _COLOUR_HZ[0])).clamp(0, 1)
    sure = (loudness(wave, step=step) / 0.15).clamp(0, 1)
    return 0.5 + (colour - 0.5) * sure
