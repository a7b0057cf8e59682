"""8-bit storage: what it costs, what it leaves alone, and damage."""
from __future__ import annotations

import pytest
import torch
from seeded import seeded_state_dict

from kinograph.checkpoints.layout import expected_tensors, model_factory
from kinograph.checkpoints.storage import pack_int8, unpack
from kinograph.config import TI2V_5B, tiny
from kinograph.errors import CheckpointError


def snr_db(original: torch.Tensor, restored: torch.Tensor) -> float:
    noise = (original - restored).double().square().mean()
    return float(10 * torch.log10(original.double().square().mean() / noise))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    spec = tiny(TI2V_5B)
    return seeded_state_dict({name: t.shape for name, t in expected_tensors(model_factory(spec, "all_noise")).items()})


def test_snr_of_every_packed_weight(state, record_property):
    restored = dict(unpack(pack_int8(state).items()))
    assert restored.keys() == state.keys()
    packed = [name for name in state if not torch.equal(state[name], restored[name])]
    assert "blocks.0.self_attn.q.weight" in packed and "patch_embedding.weight" in packed
    assert all(name.endswith(".weight") and state[name].ndim >= 2 for name in packed)
    ratios = {name: snr_db(state[name], restored[name]) for name in packed}
    record_property("lowest_snr_db", min(ratios.values()))
    assert min(ratios.values()) > 42, min(ratios.items(), key=lambda pair: pair[1])


def test_error_is_at_most_half_a_level(state):
    weight = state["blocks.0.ffn.0.weight"]
    restored = dict(unpack(pack_int8({"x.weight": weight}).items()))["x.weight"]
    half_level = weight.abs().amax(dim=1, keepdim=True) / 254
    assert ((weight - restored).abs() <= half_level * 1.001).all()


def test_scale_and_weight_in_either_order(state):
    packed = list(pack_int8(state).items())
    forward, backward = dict(unpack(packed)), dict(unpack(reversed(packed)))
    assert all(torch.equal(forward[name], backward[name]) for name in state)


def test_zero_rows_and_conv_weights():
    weight = torch.randn(4, 3, 1, 2, 2)
    weight[1] = 0
    restored = dict(unpack(pack_int8({"conv.weight": weight}).items()))["conv.weight"]
    assert restored.shape == weight.shape and (restored[1] == 0).all() and restored.isfinite().all()


def test_keep(state):
    packed = pack_int8(state, keep=lambda name: name.startswith("head."))
    assert packed["head.head.weight"] is state["head.head.weight"]
    assert packed["blocks.0.ffn.0.weight"].dtype == torch.int8


def test_works_on_meta_tensors(state):
    meta = [(name, tensor.to("meta")) for name, tensor in pack_int8(state).items()]
    assert {name: tensor.shape for name, tensor in unpack(meta)} == {name: tensor.shape for name, tensor in state.items()}


@pytest.mark.parametrize(
    "stream, words",
    [
        ({"x.weight": torch.ones(2, 2, dtype=torch.int8)}, "x.weight has no x.weight_scale"),
        ({"x.weight_scale": torch.ones(2)}, "x.weight_scale has no x.weight"),
        ({"x.weight": torch.ones(2, 3, dtype=torch.int8), "x.weight_scale": torch.ones(3)}, "scale of shape [3]"),
    ],
)
def test_damage(stream, words):
    with pytest.raises(CheckpointError) as raised:
        dict(unpack(stream.items()))
    assert words in str(raised.value)
