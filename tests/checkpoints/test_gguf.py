"""GGUF files against the package `gguf` itself: what it writes is read here, and what is written here it reads."""
from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from seeded import seeded_state_dict

from kinograph.checkpoints import formats, gguf_files
from kinograph.checkpoints.convert import Target, convert_file, convert_folder
from kinograph.checkpoints.layout import check_folder, check_model, expected_tensors, model_factory
from kinograph.checkpoints.load import load_model
from kinograph.checkpoints.recognise import describe, recognise
from kinograph.config import T2V_NANO, TI2V_5B, RuntimeOptions, tiny
from kinograph.errors import CheckpointError, MissingExtraError
from kinograph.runtime.placement import Components

gguf = pytest.importorskip("gguf")

NANO = T2V_NANO  # its rows are multiples of 256, the block of the K types
# Largest error as a share of a block's range (_1), or of its largest value (_0): half a step, but a whole one where the
# levels are not symmetric and the value opposite to the largest is cut off (q5_0, q4_0).
SHARES = {"q8_0": 1 / 254, "q5_1": 1 / 62, "q5_0": 1 / 16, "q4_1": 1 / 30, "q4_0": 1 / 8}
SCALE_ROUNDING = 1.15  # the scale is a float16


@pytest.fixture(scope="module")
def states():
    return {name: seeded_state_dict({key: tensor.shape for key, tensor in expected_tensors(model_factory(NANO, name)).items()})
            for name in ("high_noise", "text_encoder")}  # fmt: skip


def loaded(spec, name, path):
    weights = check_model(spec, name, (path,))
    return load_model(model_factory(spec, name), weights.files, device="cpu", steps=weights.steps).state_dict()


def is_linear(name):
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name and "pos_embedding" not in name


def written_by_the_package(path, state, *, architecture, kind, quantised, **words):
    """A file as people write them with the package: `kind` is the name of a type."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in words.items():
        writer.add_string(f"general.{key}", value)
    for name, tensor in state.items():
        data, wanted = tensor.float().numpy(), gguf.GGMLQuantizationType[kind]
        if quantised(name):
            writer.add_tensor(name, gguf.quants.quantize(data, wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def assert_close_in_blocks(found, expected, kind):
    for name, tensor in expected.items():
        if not is_linear(name):
            torch.testing.assert_close(found[name].float(), tensor, rtol=0, atol=0)
            continue
        blocks, error = tensor.reshape(-1, 32), (found[name].float() - tensor).reshape(-1, 32).abs()
        spread = blocks.amax(1) - blocks.amin(1) if kind.endswith("1") else blocks.abs().amax(1)
        assert (error.amax(1) <= spread * SHARES[kind] * SCALE_ROUNDING).all(), name


# ---------------------------------------------------------------------------------------------------- theirs, here


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_a_transformer_written_by_the_package(tmp_path, states, kind):
    path = tmp_path / f"Wan2.2-T2V-HighNoise-{kind}.gguf"
    written_by_the_package(path, states["high_noise"], architecture="wan", kind=kind, quantised=is_linear)
    contents = recognise([path])
    assert (contents.kind, contents.names, contents.expert, contents.storage) == ("transformer", "published", "high_noise", f"GGUF {kind}")
    found = loaded(NANO, "high_noise", path)
    assert_close_in_blocks(found, states["high_noise"], kind.lower())
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    name = "blocks.3.ffn.2.weight"
    assert torch.equal(found[name], torch.from_numpy(gguf.quants.dequantize(reader[name].data, reader[name].tensor_type)))


@pytest.mark.parametrize("kind", ["BF16", "F16", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS"])
def test_types_that_only_other_programs_write(tmp_path, states, kind):
    """K types: blocks of zeros, which every type can say, stand for the quantiser that the package lacks."""
    wanted = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    for name, tensor in states["high_noise"].items():
        if not is_linear(name):
            writer.add_tensor(name, tensor.numpy())
        elif kind in ("BF16", "F16"):
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(name, np.zeros(gguf.quant_shape_to_byte_shape(tuple(tensor.shape), wanted), np.uint8), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = loaded(NANO, "high_noise", tmp_path / "x.gguf")
    name = "blocks.0.self_attn.q.weight"
    expected = {"BF16": torch.bfloat16, "F16": torch.float16}.get(kind, torch.float32)
    assert found[name].dtype == expected
    assert torch.equal(found[name], states["high_noise"][name].to(expected) if kind in ("BF16", "F16") else torch.zeros(256, 256))


def test_a_text_encoder_with_the_names_of_llama_cpp(tmp_path, states):
    names = formats.t5_gguf_names(NANO.text.num_layers)
    renamed = dict(formats.renamed(names)(states["text_encoder"].items()))
    linears = {formats.rename(name, names) for name in states["text_encoder"] if is_linear(name)}
    written_by_the_package(tmp_path / "x.gguf", renamed, architecture="t5encoder", kind="Q8_0", quantised=linears.__contains__)
    assert recognise([tmp_path / "x.gguf"]).names == "llama.cpp"
    assert_close_in_blocks(loaded(NANO, "text_encoder", tmp_path / "x.gguf"), states["text_encoder"], "q8_0")


def test_shapes_that_a_converter_folded(tmp_path, states):
    path = tmp_path / "x.gguf"
    name = "patch_embedding.weight"
    shape = tuple(states["high_noise"][name].shape)
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
    for key, tensor in states["high_noise"].items():
        writer.add_tensor(key, tensor.reshape(shape[0], -1).numpy() if key == name else tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert torch.equal(loaded(NANO, "high_noise", path)[name], states["high_noise"][name])


# ----------------------------------------------------------------------------------------------------- ours, there


@pytest.mark.parametrize("kind", gguf_files.QUANTISE_TYPES)
def test_a_file_written_here_is_read_by_the_package(tmp_path, states, kind):
    from safetensors.torch import save_file

    source, target = tmp_path / "t2v-nano_high_noise.safetensors", tmp_path / "out.gguf"
    save_file(states["high_noise"], source)
    convert_file(source, target, Target(layout="single", quantise=kind))
    reader = gguf.GGUFReader(target)
    assert reader.get_field("general.architecture").contents() == "wan"
    assert reader.get_field("general.name").contents() == "t2v-nano high_noise"
    found = {}
    for tensor in reader.tensors:
        assert (tensor.tensor_type.name == kind.upper()) == is_linear(tensor.name)
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        found[tensor.name] = values.reshape([int(size) for size in tensor.shape[::-1]])
    assert found.keys() == states["high_noise"].keys()
    assert_close_in_blocks(found, states["high_noise"], kind)
    assert recognise([target]).expert == "high_noise"  # the file's name does not say so
    ours = loaded(NANO, "high_noise", target)
    assert all(torch.equal(ours[name], tensor) for name, tensor in found.items())


def test_a_tree_with_gguf_files(pristine, tmp_path):
    spec = tiny(TI2V_5B)
    tree = convert_folder(spec, pristine / "ti2v", tmp_path / "tree", Target(layout="single", quantise="q8_0"))
    weights = check_folder(spec, tree)
    # The rows of the tiny model's attention are 48 long, which is no multiple of 32; those of the feed-forward are.
    types = gguf_files.tensor_types(weights["all_noise"].files[0])
    assert types["Q8_0"] and types["F16"] and weights["vae"].contents.storage == "float32"
    text = {tensor.name for tensor in gguf.GGUFReader(weights["text_encoder"].files[0]).tensors}
    assert {"token_embd.weight", "enc.blk.1.attn_q.weight", "enc.output_norm.weight"} <= text
    parts = Components(spec, tree, RuntimeOptions(device="cpu"))
    assert parts.tokenizer(["a red ball"])[1].any()
    with parts.place("all_noise") as dit, torch.no_grad():
        assert dit(torch.randn(1, 48, 1, 4, 4), torch.tensor([500.0]), torch.randn(1, 32, 48)).isfinite().all()
    assert any("GGUF Q8_0" in line or "GGUF F16" in line for line in describe(tree))


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.fixture
def small(tmp_path, states):
    path = tmp_path / "small.gguf"
    written_by_the_package(path, states["high_noise"], architecture="wan", kind="Q8_0", quantised=is_linear)
    return path


def complaint(path) -> str:
    with pytest.raises(CheckpointError) as raised:
        recognise([path])
    return str(raised.value)


def test_types_that_are_unknown(small):
    """The type of a tensor follows its name, the number of its axes and their sizes."""
    data = bytearray(small.read_bytes())
    name = b"blocks.0.ffn.0.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8
    assert data[at : at + 4] == bytes([gguf.GGMLQuantizationType.Q8_0, 0, 0, 0])
    data[at : at + 4] = bytes([99, 0, 0, 0])
    small.write_bytes(data)
    assert "the GGUF type number 99, which gguf" in complaint(small) and "does not know" in complaint(small)
    data[at : at + 4] = bytes([gguf.GGMLQuantizationType.Q8_1, 0, 0, 0])
    small.write_bytes(data)
    assert "tensors of the type Q8_1, which cannot be widened" in complaint(small)


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01, 0.0001])
def test_files_that_are_cut_off(small, keep):
    data = small.read_bytes()
    small.write_bytes(data[: int(len(data) * keep)])
    assert "download it again" in complaint(small)


def test_the_package_is_missing(small, monkeypatch):
    gguf_files._reader.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kinograph\[gguf\]'"):
        recognise([small])
