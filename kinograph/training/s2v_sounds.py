"""Speech as talkers are trained with it: what is heard of it in each frame, and what the mouth does."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kinograph.models.wav2vec2 import Wav2Vec2
from kinograph.tasks import s2v_clips
from kinograph.training.s2v_recipe import S2VRecipe
from kinograph.training.speech_sounds import babble, loudness, vowel_colour


@dataclass(frozen=True)
class Sound:
    """One piece of sound, per video frame: what is heard, and what the mouth does."""

    features: Tensor  # [S, C, n] as the transformer gets them
    opening: Tensor  # [n]
    width: Tensor  # [n]

    def __len__(self) -> int:
        return self.opening.shape[0]

    def heard(self, start: int, count: int) -> Tensor:
        """[S, C, count]: features of frames from `start` on; zeros after the sound."""
        part = self.features[..., start : start + count]
        return F.pad(part, (0, count - part.shape[-1]))

    def mouth(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Opening and width of frames from `start` on, which may lie before or after the sound: closed there."""
        before, after = max(0, -start), max(0, start + count - len(self))
        part = slice(max(0, start), max(0, start + count))
        opening = F.pad(self.opening[part], (before, after))[:count]
        return opening, F.pad(self.width[part], (before, after), value=0.5)[:count]


@torch.no_grad()
def hear(encoder: Wav2Vec2, wave: np.ndarray, *, extra: int = 0) -> Sound:
    """`wave` at 16 kHz through the real path: normalised, encoded, at 30 Hz, one feature per frame; `extra` frames after its end."""
    device = next(encoder.parameters()).device
    samples = torch.from_numpy(wave).to(device)
    hidden = encoder(samples[None])[0]
    count = -(-len(wave) * 16 // 16000) + extra
    features = s2v_clips.frame_features(s2v_clips.at_30_hz(hidden), count)[0]
    opening, width = (F.pad(values, (0, extra), value=rest) for values, rest in ((loudness(samples), 0.0), (vowel_colour(samples), 0.5)))
    return Sound(features, opening[:count], width[:count])


def sound_pieces(waves: Sequence[np.ndarray], recipe: S2VRecipe, encoder: Wav2Vec2) -> list[Sound]:
    """Training sounds: each wave whole, joined pairs, and babble; with noise at various levels."""
    rng = np.random.default_rng(recipe.seed)
    pieces = list(waves)
    for first in rng.permutation(len(waves)):
        pause = np.zeros(int(16000 * rng.uniform(0.1, 1.5)), dtype=np.float32)
        pieces.append(np.concatenate([waves[first], pause, waves[int(rng.integers(len(waves)))]]))
    seconds = 0.0
    while seconds < recipe.babble_seconds:
        length = rng.uniform(3, 9)
        pieces.append(babble(length, rng))
        seconds += length
    noisy = [wave + rng.normal(0, 10 ** rng.uniform(-4.5, -2.5), len(wave)).astype(np.float32) for wave in pieces]
    return [hear(encoder, wave.astype(np.float32), extra=recipe.frames) for wave in noisy]
