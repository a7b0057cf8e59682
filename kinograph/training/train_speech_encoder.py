"""Trains the small wav2vec2 of the nano member to hear loudness and vowel colour, on a CPU in a few minutes.

Both are read from its hidden states by linear heads that are thrown away: what is left is an encoder whose states tell a
transformer what a talker's mouth needs to know. Saved under the names that `transformers` uses.
"""
from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kinograph.config import SpeechEncoderConfig
from kinograph.errors import CheckpointError
from kinograph.models.wav2vec2 import SAMPLE_RATE, SAMPLES_PER_FEATURE, Wav2Vec2, module_names, num_features
from kinograph.training.speech_sounds import WINDOW, loudness, vowel_colour

FOLDER = "speech-encoder"
FILE = "model.safetensors"
NUM_TARGETS = 5


def targets(wave: Tensor) -> Tensor:
    """[T50, 5]: loudness and vowel colour where each feature of `wave` [samples] begins, and loudness 1, 2 and 3 video frames before.

    A clip's first frames show the sound of just before the clip, whose own features the transformer is not given.
    """
    count = num_features(wave.shape[0])
    now = [function(wave, step=SAMPLES_PER_FEATURE)[:count] for function in (loudness, vowel_colour)]
    before = [loudness(wave, step=SAMPLES_PER_FEATURE, delay=k * WINDOW)[:count] for k in range(1, NUM_TARGETS - 1)]
    return torch.stack([*now, *before], dim=1)


class Heads(nn.Module):
    """Linear readings of the last state, and of the mean of all: whichever the transformer mixes, it hears."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.last, self.mean = nn.Linear(dim, NUM_TARGETS), nn.Linear(dim, NUM_TARGETS)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Two readings [B, T, 5] of `states` [B, S, T, dim]."""
        return self.last(states[:, -1]), self.mean(states.mean(1))


def fit(
    config: SpeechEncoderConfig,
    waves: Sequence[np.ndarray],
    *,
    seconds: float = 150.0,
    steps: int | None = None,
    batch: int = 8,
    lr: float = 2e-3,
    seed: int = 0,
    start: Wav2Vec2 | None = None,
    report: Callable[[str], None] = print,
) -> tuple[Wav2Vec2, Heads]:
    """An encoder trained on random pieces of `waves`, for so many seconds, or `steps`; it goes on from `start`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    encoder, heads = (start or Wav2Vec2(config)).train().requires_grad_(True), Heads(config.dim)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    started = reported = time.monotonic()
    step, sums = 0, torch.zeros(NUM_TARGETS)
    while (elapsed := time.monotonic() - started) < seconds if steps is None else step < steps:
        done = elapsed / seconds if steps is None else step / steps
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * (0.03 + 0.97 * 0.5 * (1 + np.cos(np.pi * done)))
        pieces = _pieces(waves, batch, rng)
        wanted = torch.stack([targets(piece) for piece in pieces])
        error = sum((reading - wanted).square().mean((0, 1)) for reading in heads(encoder(pieces)))
        optimizer.zero_grad()
        error.sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        sums += error.detach()
        if time.monotonic() - reported > 20:
            report(f"speech encoder: {elapsed:.0f} s, step {step}, squared errors {(sums / step / 2).tolist()} on average so far")
            reported = time.monotonic()
    return encoder.eval().requires_grad_(False), heads.eval().requires_grad_(False)


def _pieces(waves: Sequence[np.ndarray], count: int, rng: np.random.Generator) -> Tensor:
    """[count, samples]: pieces of one random length, of any level, some with silence or noise added."""
    length = int(SAMPLE_RATE * rng.uniform(1.5, 4.0))
    pieces = np.zeros((count, length), dtype=np.float32)
    for row in pieces:
        wave = waves[int(rng.integers(len(waves)))]
        start = int(rng.integers(-length // 3, max(1, len(wave) - length // 2)))
        part = wave[max(0, start) : start + length]
        row[max(0, -start) : max(0, -start) + len(part)] = part
        row += rng.normal(0, 10 ** rng.uniform(-4.5, -2.3), length)
    return torch.from_numpy(pieces)


@torch.no_grad()
def heard(encoder: Wav2Vec2, heads: Heads, waves: Sequence[np.ndarray]) -> Tensor:
    """[5]: correlation over all `waves`, whole ones, of what the last state reads with `targets`."""
    read, wanted = [], []
    for wave in waves:
        one = torch.from_numpy(wave)
        read.append(heads(encoder(one[None]))[0][0])
        wanted.append(targets(one))
    a, b = torch.cat(read), torch.cat(wanted)
    return F.cosine_similarity(a - a.mean(0), b - b.mean(0), dim=0)


def save_encoder(encoder: Wav2Vec2, folder: str | Path) -> Path:
    """`folder`/model.safetensors and config.json, float16, under the names of the released files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parametrised = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        for long, short in parametrised.items():
            name = name.replace(long, short)
        if not name.endswith("masked_spec_embed"):
            tensors[name] = tensor.detach().to(torch.float16).contiguous()
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    encoder.wav2vec2.config.save_pretrained(folder)
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    about["architectures"] = ["Wav2Vec2Model"]
    (folder / "config.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def load_encoder(folder: str | Path, config: SpeechEncoderConfig, *, device: torch.device | str = "cpu") -> Wav2Vec2:
    """The frozen encoder in `folder`, float32."""
    file = Path(folder) / FILE
    if not file.is_file():
        raise CheckpointError(f"there is no {FILE} in {folder}; train the speech encoder first, or name the folder that has it")
    encoder = Wav2Vec2(config)
    state = dict(module_names(load_file(file).items()))
    missing, unexpected = encoder.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    if unexpected or [name for name in missing if not name.endswith("masked_spec_embed")]:
        raise CheckpointError(f"{file} is not a speech encoder of this size: missing {missing[:3]}, unexpected {unexpected[:3]}")
    return encoder.to(device).eval().requires_grad_(False)
