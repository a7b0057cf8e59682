"""Saving: what is written loads again, whole or not at all."""
from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from seeded import load_seeded

from benchmarks.write_random_checkpoint import write_byte_tokenizer
from kinograph.checkpoints.layout import check_folder, model_factory, model_names, open_checkpoint
from kinograph.checkpoints.load import load_model
from kinograph.checkpoints.save import save_checkpoint, split_shards, write_pth, write_safetensors
from kinograph.config import I2V_NANO, T2V_A14B, T2V_NANO, TI2V_5B, TI2V_NANO, tiny
from kinograph.errors import CheckpointError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "bytes"
    write_byte_tokenizer(folder)
    return folder


def models_of(spec):
    return {name: load_seeded(model_factory(spec, name)(), seed=i) for i, name in enumerate(model_names(spec))}


@pytest.mark.parametrize("base", [TI2V_5B, T2V_A14B], ids=lambda spec: spec.name)
@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
def test_round_trip(tmp_path, tokenizer, base, shard_bytes):
    spec = tiny(base)
    models = models_of(spec)
    save_checkpoint(tmp_path / "out", spec, models, tokenizer=tokenizer, shard_bytes=shard_bytes)
    for name, weights in check_folder(spec, tmp_path / "out").items():
        again = load_model(model_factory(spec, name), weights.files, device="cpu").state_dict()
        assert all(torch.equal(again[key], tensor) for key, tensor in models[name].state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_int8_is_a_quarter_of_the_size(tmp_path, tokenizer):
    spec = tiny(TI2V_5B)
    models = models_of(spec)
    save_checkpoint(tmp_path / "a", spec, models, tokenizer=tokenizer)
    save_checkpoint(tmp_path / "b", spec, models, tokenizer=tokenizer, int8=model_names(spec), keep=lambda name: name.startswith("head."))
    full, packed = (check_folder(spec, tmp_path / folder) for folder in "ab")
    for name, model in models.items():
        big, little = (sum(file.stat().st_size for file in weights[name].files) for weights in (full, packed))
        assert little < 0.55 * big, name
        again = load_model(model_factory(spec, name), packed[name].files, device="cpu").state_dict()
        for key, tensor in model.state_dict().items():
            assert (again[key] - tensor).norm() <= 0.02 * tensor.norm(), key


def test_dtype(tmp_path, tokenizer):
    spec = tiny(TI2V_5B)
    save_checkpoint(tmp_path / "out", spec, models_of(spec), tokenizer=tokenizer, dtype=torch.bfloat16)
    weights = check_folder(spec, tmp_path / "out")
    assert {tensor.dtype for each in weights.values() for tensor in each.tensors.values()} == {torch.bfloat16}


def test_other_readers_can_read_the_file(tmp_path):
    tensors = {
        "bytes": torch.arange(5, dtype=torch.int8),
        "half": torch.randn(3, 2).bfloat16(),
        "one": torch.tensor(2.5),
        "none": torch.empty(0, 4),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    again = load_file(tmp_path / "x.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_streaming_values(tmp_path):
    meta = {name: torch.empty(4, 3, device="meta") for name in "ab"}
    write_safetensors(tmp_path / "x.safetensors", meta, value=lambda name: torch.full((4, 3), float(ord(name))))
    assert load_file(tmp_path / "x.safetensors")["b"].unique().tolist() == [98.0]
    with pytest.raises(ValueError, match="a was announced as"):
        write_safetensors(tmp_path / "y.safetensors", meta, value=lambda name: torch.ones(4))


def test_a_view_does_not_drag_its_storage_along(tmp_path):
    write_pth(tmp_path / "x.pth", {"row": torch.zeros(1000, 1000)[3]})
    assert (tmp_path / "x.pth").stat().st_size < 10_000


def test_shards():
    state = {name: torch.zeros(size) for name, size in (("a", 10), ("b", 10), ("c", 100), ("d", 1))}
    shards = split_shards(state, limit=100)
    assert list(shards.values()) == [["a", "b"], ["c"], ["d"]]
    assert next(iter(shards)) == "diffusion_pytorch_model-00001-of-00003.safetensors"


def test_config_has_the_published_keys(pristine):
    config = json.loads((pristine / "ti2v" / "config.json").read_text())
    published = {"dim", "eps", "ffn_dim", "freq_dim", "in_dim", "model_type", "num_heads", "num_layers", "out_dim", "text_len"}
    assert config.keys() >= published and config["_class_name"] == "WanModel" and config["model_type"] == "ti2v"


def test_existing_folder(tmp_path, tokenizer):
    spec = tiny(TI2V_5B)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="already exists"):
        save_checkpoint(tmp_path / "out", spec, models_of(spec), tokenizer=tokenizer)
    save_checkpoint(tmp_path / "out", spec, models_of(spec), tokenizer=tokenizer, overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists()


def test_models_that_share_files_have_one_copy_beside_their_folders(tmp_path, tokenizer):
    members = {"t2v-nano": tiny(T2V_NANO), "i2v-nano": tiny(I2V_NANO)}
    models = {name: models_of(spec) for name, spec in members.items()}
    for name in ("vae", "text_encoder"):
        models["i2v-nano"][name] = models["t2v-nano"][name]
    for name, spec in members.items():
        save_checkpoint(tmp_path / name, spec, models[name], tokenizer=tokenizer, int8=("vae",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i2v-nano", "nano-shared", "t2v-nano"]
    shared = {str(path.relative_to(tmp_path / "nano-shared")) for path in (tmp_path / "nano-shared").rglob("*") if path.is_file()}
    assert shared == {"Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json"}
    for name, spec in members.items():
        assert {path.name for path in (tmp_path / name).iterdir()} == {"high_noise_model", "low_noise_model"}
        checkpoint = open_checkpoint(spec, tmp_path / name)
        assert checkpoint.tokenizer.resolve() == tmp_path / "nano-shared" / "google" / "umt5-xxl"
        for part, weights in checkpoint.weights.items():
            again = load_model(model_factory(spec, part), weights.files, device="cpu").state_dict()
            for key, tensor in models[name][part].state_dict().items():
                assert (again[key] - tensor).norm() <= 0.02 * tensor.norm() if part == "vae" else torch.equal(again[key], tensor)


def test_shared_files_of_other_models_are_not_replaced_unasked(tmp_path, tokenizer):
    spec, other = tiny(T2V_NANO), tiny(I2V_NANO)
    save_checkpoint(tmp_path / "t2v", spec, models_of(spec), tokenizer=tokenizer)
    models = models_of(other)
    models["vae"] = load_seeded(models["vae"], seed=99)
    before = (tmp_path / "nano-shared" / "Wan2.1_VAE.pth").read_bytes()
    with pytest.raises(CheckpointError, match=r"nano-shared/Wan2.1_VAE.pth belongs to other models too"):
        save_checkpoint(tmp_path / "i2v", other, models, tokenizer=tokenizer)
    assert (tmp_path / "nano-shared" / "Wan2.1_VAE.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nano-shared", "t2v"]
    save_checkpoint(tmp_path / "i2v", other, models, tokenizer=tokenizer, overwrite=True)
    assert (tmp_path / "nano-shared" / "Wan2.1_VAE.pth").read_bytes() != before
    assert not [path for path in (tmp_path / "nano-shared").iterdir() if path.suffix == ".partial"]


def test_a_shared_vae_is_no_answer_to_a_missing_one(tmp_path, tokenizer):
    spec, alone = tiny(T2V_NANO), tiny(TI2V_NANO)
    save_checkpoint(tmp_path / "t2v", spec, models_of(spec), tokenizer=tokenizer)
    save_checkpoint(tmp_path / "ti2v", alone, models_of(alone), tokenizer=tokenizer)
    (tmp_path / "ti2v" / "Wan2.2_VAE.pth").unlink()
    with pytest.raises(CheckpointError, match=r"Wan2.2_VAE.pth is missing"):
        check_folder(alone, tmp_path / "ti2v")


def test_nothing_is_left_of_a_save_that_failed(tmp_path, tokenizer):
    spec = tiny(TI2V_5B)
    save_checkpoint(tmp_path / "out", spec, models_of(spec), tokenizer=tokenizer)
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "out", spec, models_of(spec), tokenizer=tmp_path / "absent", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    check_folder(spec, tmp_path / "out")


def test_every_model_must_be_given(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="consists of text_encoder, all_noise, vae"):
        save_checkpoint(tmp_path / "out", tiny(TI2V_5B), {}, tokenizer=tokenizer)
