"""The name tables against the lists of names in published checkpoints, and against each package's own names."""
from __future__ import annotations

import pytest
import torch
from reference import manifest

from kinograph.checkpoints.formats import (
    PREFIXES,
    T5_TWIN,
    dit_names,
    inverse,
    rename,
    renamed,
    t5_gguf_names,
    t5_names,
    vae_names,
    without,
    without_prefix,
    without_twin,
)
from kinograph.checkpoints.layout import expected_tensors, model_factory
from kinograph.config import I2V_A14B, NANO_VAE_21, NANO_VAE_22, T2V_A14B, TI2V_5B, TI2V_NANO, WAN21_VAE, WAN22_VAE, tiny

PUBLISHED = [
    (dit_names(T2V_A14B.dit.num_layers), "t2v-A14B.dit", "diffusers.t2v-A14B.dit"),
    (dit_names(I2V_A14B.dit.num_layers), "i2v-A14B.dit", "diffusers.i2v-A14B.dit"),
    (dit_names(TI2V_5B.dit.num_layers), "ti2v-5B.dit", "diffusers.ti2v-5B.dit"),
    (vae_names(WAN21_VAE), "vae2_1", "diffusers.vae2_1"),
    (vae_names(WAN22_VAE), "vae2_2", "diffusers.vae2_2"),
    (t5_names(24), "umt5-xxl-encoder", "diffusers.umt5-xxl-encoder"),
]


@pytest.mark.parametrize("names, ours, theirs", PUBLISHED, ids=lambda value: value if isinstance(value, str) else "")
def test_every_published_name_maps_both_ways(names, ours, theirs):
    ours, theirs = manifest(ours), manifest(theirs)
    theirs.pop(T5_TWIN, None)
    assert {rename(name, names): shape for name, shape in ours.items()} == theirs
    assert {rename(name, inverse(names)): shape for name, shape in theirs.items()} == ours


@pytest.mark.parametrize("spec", [TI2V_NANO, tiny(T2V_A14B), tiny(TI2V_5B)], ids=lambda spec: spec.name)
def test_tables_follow_the_sizes_of_the_model(spec):
    dit, text = dit_names(spec.dit.num_layers), t5_names(spec.text.num_layers)
    for model, names in {"text_encoder": text, "vae": vae_names(spec.vae), spec.experts[0].name: dit}.items():
        for name in expected_tensors(model_factory(spec, model)):
            there = rename(name, names)
            assert rename(there, inverse(names)) == name
            assert there in names.values() or there.rpartition(".")[0] in names.values()


@pytest.mark.parametrize(
    "names",
    [dit_names(40), *map(vae_names, (WAN21_VAE, WAN22_VAE, NANO_VAE_21, NANO_VAE_22)), t5_names(24), t5_gguf_names(24)],
)
def test_tables_are_one_to_one(names):
    assert len(set(names.values())) == len(names)


def test_gguf_names_are_those_of_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 24)
    for ours, name in t5_gguf_names(24).items():
        assert theirs.get_name(t5_names(24)[ours]) == name


def test_companions_of_a_weight_follow_it_and_unknown_names_stay():
    names = dit_names(tiny(T2V_A14B).dit.num_layers)
    assert rename("blocks.1.ffn.0.scale_weight", names) == "blocks.1.ffn.net.0.proj.scale_weight"
    assert rename("blocks.7.norm3.weight", names) == "blocks.7.norm3.weight"  # the tiny model has two blocks
    assert rename("img_emb.proj.0.bias", names) == "img_emb.proj.0.bias"


def test_steps_on_streams():
    a, b = torch.zeros(1), torch.ones(1)
    assert list(renamed({"x": "y"})([("x.weight", a), ("z", b)])) == [("y.weight", a), ("z", b)]
    assert list(without_prefix(PREFIXES[0])([(PREFIXES[0] + "x", a), ("z", b)])) == [("x", a), ("z", b)]
    assert list(without(["z"])([("x", a), ("z", b)])) == [("x", a)]


@pytest.mark.parametrize("names", [["shared.weight"], [T5_TWIN], ["shared.weight", T5_TWIN], [T5_TWIN, "shared.weight"]])
def test_the_token_embedding_of_transformers_comes_once(names):
    tensor = torch.zeros(1)
    assert list(without_twin((name, tensor) for name in names)) == [("shared.weight", tensor)]
