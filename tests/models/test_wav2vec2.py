"""The speech encoder: stored results of the published code, and the names of the released file."""
from __future__ import annotations

import sys

import pytest
import torch
from reference import assert_close, case, manifest, tensors
from seeded import seeded_state_dict

from kinograph.config import S2V_14B, SpeechEncoderConfig, tiny
from kinograph.errors import MissingExtraError
from kinograph.models.wav2vec2 import Wav2Vec2, module_names, normalise, num_features

CASE, DATA = case("s2v_wav2vec2"), tensors("s2v_wav2vec2", "data.safetensors")
RELEASED = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def released_name(name: str) -> str:
    for new, old in RELEASED.items():
        name = name.replace(new, old)
    return name


def golden_model() -> Wav2Vec2:
    sizes = CASE["config"]
    model = Wav2Vec2(
        SpeechEncoderConfig(
            dim=sizes["hidden_size"],
            ffn_dim=sizes["intermediate_size"],
            num_heads=sizes["num_attention_heads"],
            num_layers=sizes["num_hidden_layers"],
            conv_dim=sizes["conv_dim"][0],
            conv_pos_groups=sizes["num_conv_pos_embedding_groups"],
        )
    )
    shapes = {released_name(name): tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(dict(module_names(seeded_state_dict(shapes, CASE["weights"]["seed"]).items())), strict=True)
    return model


@torch.no_grad()
def test_golden():
    wave = DATA["wave"][None]
    hidden = golden_model()(wave)
    assert_close(normalise(wave)[0], DATA["input_values"], CASE["tolerance"], "input_values")
    assert_close(hidden[0], DATA["hidden"], CASE["tolerance"], "hidden")
    assert hidden.shape[2] == num_features(wave.shape[1])


def test_names_of_the_released_file():
    with torch.device("meta"):
        model = Wav2Vec2(S2V_14B.speech_encoder)
        released = {name: torch.empty(shape) for name, shape in manifest("wav2vec2-large-xlsr-53").items()}
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in module_names(released.items())} == found
    assert dict(module_names(model.state_dict().items())).keys() == found.keys()  # the newer spelling is taken as it is
    assert not list(model.buffers())


@torch.no_grad()
def test_nothing_is_random():
    model = Wav2Vec2(tiny(S2V_14B).speech_encoder).train()
    wave = torch.randn(1, 2000)
    assert torch.equal(model(wave), model(wave))
    torch.testing.assert_close(model(wave), model(3 * wave + 0.5), atol=1e-4, rtol=1e-4)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kinograph\[speech\]'"):
        Wav2Vec2(S2V_14B.speech_encoder)
