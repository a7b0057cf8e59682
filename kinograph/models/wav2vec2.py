"""wav2vec2: what is heard in a wave, as the hidden states of a speech recogniser, through the package `transformers`.

    wave 16 kHz -> 7 convolutions -> one feature per 320 samples (50 Hz) -> transformer -> all its hidden states

The published model takes all of them: entry 0 enters the first layer, entries 1 to n − 1 are what layers 1 to n − 1 give, and
entry n is what layer n gives, *normalised*. Releases of `transformers` differ in that last one; here it is the same for all.

Attention is over the whole wave: memory and time grow with the square of its length, and a wave that is cut up gives other
numbers.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kinograph.config import SpeechEncoderConfig
from kinograph.errors import MissingExtraError

SAMPLE_RATE = 16000
SAMPLES_PER_FEATURE = 320
MIN_SAMPLES = 400  # seen by one feature

# The two factors of the positional convolution's weight: as the released file calls them, and as `transformers` does by now.
_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
_UNUSED = ("lm_head.", "wav2vec2.masked_spec_embed")


class Wav2Vec2(nn.Module):
    """The encoder of a wav2vec2 recogniser. Raises MissingExtraError where `transformers` is not installed."""

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.wav2vec2 = _encoder(config)

    def forward(self, wave: Tensor) -> Tensor:
        """[B, layers + 1, T, dim], T = `num_features`(n), for `wave` [B, n] at 16 kHz, n >= 400, of any loudness."""
        outputs = self.wav2vec2(normalise(wave), output_hidden_states=True)
        return torch.stack([*outputs.hidden_states[:-1], outputs.last_hidden_state], dim=1)


def num_features(num_samples: int) -> int:
    """Features of a wave of at least 400 samples."""
    return (num_samples - MIN_SAMPLES) // SAMPLES_PER_FEATURE + 1


def normalise(wave: Tensor) -> Tensor:
    """`wave` [B, n] with mean 0 and deviation 1, over its whole length."""
    variance, mean = torch.var_mean(wave, dim=-1, correction=0, keepdim=True)
    return (wave - mean) * torch.rsqrt(variance + 1e-7)


def module_names(pairs: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a released file under the names of `Wav2Vec2`, without those of the recogniser's head and of its training."""
    for name, tensor in pairs:
        if name.startswith(_UNUSED):
            continue
        stem, _, last = name.rpartition(".")
        yield (f"{stem}.{_WEIGHT_NORM[last]}" if last in _WEIGHT_NORM else name), tensor


def _encoder(config: SpeechEncoderConfig) -> Any:
    try:
        from transformers import Wav2Vec2Config, Wav2Vec2Model
    except ImportError as error:
        raise MissingExtraError("speech to video", "transformers", "speech") from error
    return Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_attention_heads=config.num_heads,
            num_hidden_layers=config.num_layers,
            conv_dim=[config.conv_dim] * 7,
            num_conv_pos_embedding_groups=config.conv_pos_groups,
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            # Nothing random, whichever mode the module is in.
            activation_dropout=0.0,
            attention_dropout=0.0,
            feat_proj_dropout=0.0,
            hidden_dropout=0.0,
            layerdrop=0.0,
            mask_feature_prob=0.0,
            mask_time_prob=0.0,
        )
    )
