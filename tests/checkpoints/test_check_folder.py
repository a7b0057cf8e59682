"""Each way in which a checkpoint folder goes wrong gets a sentence that names the file and the remedy."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from reference import manifest
from safetensors.torch import load_file, save_file

from kinograph.checkpoints.layout import (
    DIT_INDEX,
    bundled_folder,
    check_folder,
    compare,
    config_json,
    expected_tensors,
    guess_model,
    model_factory,
    model_names,
)
from kinograph.config import I2V_A14B, MODELS, T2V_A14B, TI2V_5B, ModelSpec, tiny
from kinograph.errors import CheckpointError

TI2V, T2V = tiny(TI2V_5B), tiny(T2V_A14B)
VAE22, T5 = TI2V.files.vae, TI2V.files.text_encoder
SHARD = "diffusion_pytorch_model-00001-of-*.safetensors"


def complaint(spec: ModelSpec, folder) -> str:
    with pytest.raises(CheckpointError) as raised:
        check_folder(spec, folder)
    return str(raised.value)


def truncate(path, keep=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


# -------------------------------------------------------------------------------------------------- what is right


def test_good_folders(pristine):
    for spec, name in ((TI2V, "ti2v"), (T2V, "t2v")):
        weights = check_folder(spec, pristine / name)
        assert tuple(weights) == model_names(spec)
        assert weights["text_encoder"].num_bytes() * 2 == weights["text_encoder"].num_bytes(torch.float32)


def test_single_unsharded_file_and_missing_config(t2v):
    assert not list(t2v.glob("*/*.index.json"))
    (t2v / "low_noise_model" / "config.json").unlink()
    check_folder(T2V, t2v)


def test_safetensors_in_place_of_pth(ti2v):
    state = torch.load(ti2v / VAE22)
    save_file(state, (ti2v / VAE22).with_suffix(".safetensors"))
    (ti2v / VAE22).unlink()
    assert check_folder(TI2V, ti2v)["vae"].files[0].suffix == ".safetensors"


def test_unknown_and_missing_config_keys_are_tolerated(ti2v):
    (ti2v / "config.json").write_text(json.dumps({"_class_name": "WanModel", "qk_norm": True, "window_size": [-1, -1]}))
    check_folder(TI2V, ti2v)


@pytest.mark.parametrize(
    "spec, name, file",
    [
        (TI2V_5B, "all_noise", "ti2v-5B.dit"),
        (T2V_A14B, "low_noise", "t2v-A14B.dit"),
        (I2V_A14B, "high_noise", "i2v-A14B.dit"),
        (TI2V_5B, "vae", "vae2_2"),
        (T2V_A14B, "vae", "vae2_1"),
        (TI2V_5B, "text_encoder", "umt5-xxl-encoder"),
    ],
)
def test_full_size_models_are_the_published_ones(spec, name, file):
    published = {key: torch.empty(shape, device="meta") for key, shape in manifest(file).items()}
    assert compare(expected_tensors(model_factory(spec, name)), published) == ""


# ------------------------------------------------------------------------------------------------- missing things


def test_no_folder(tmp_path):
    assert "does not exist" in complaint(TI2V, tmp_path / "nowhere")


def test_empty_folder(tmp_path):
    text = complaint(TI2V, tmp_path)
    assert "has neither diffusion_pytorch_model" in text and f"{VAE22} is missing" in text and "tokenizer" in text
    assert len(text.splitlines()) == 4  # transformer, VAE, text encoder, tokenizer


def test_missing_shard(ti2v):
    shards = sorted(ti2v.glob("diffusion_pytorch_model-*"))
    shards[1].unlink()
    text = complaint(TI2V, ti2v)
    assert f"lacks 1 of {len(shards)} weight files ({shards[1].name})" in text and "download" in text


def test_missing_expert(t2v):
    shutil.rmtree(t2v / "low_noise_model")
    text = complaint(T2V, t2v)
    assert "lacks low_noise_model" in text and "needs both experts" in text and len(text.splitlines()) == 1


def test_missing_tokenizer(ti2v):
    shutil.rmtree(ti2v / "google")
    assert "the tokenizer" in complaint(TI2V, ti2v)


# ------------------------------------------------------------------------------------------------- damaged things

CONTENTS = {
    "is empty": b"",
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    "is a web page": b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>",
}


@pytest.mark.parametrize("words", CONTENTS)
@pytest.mark.parametrize("pattern", [SHARD, VAE22, T5])
def test_not_weights_at_all(ti2v, pattern, words):
    path = next(ti2v.glob(pattern))
    path.write_bytes(CONTENTS[words])
    text = complaint(TI2V, ti2v)
    assert words in text and path.name in text and len(text.splitlines()) == 1


@pytest.mark.parametrize("keep", [0.9, 0.02, 0.0001])
@pytest.mark.parametrize("pattern", [SHARD, VAE22])
def test_cut_off(ti2v, pattern, keep):
    path = next(ti2v.glob(pattern))
    truncate(path, keep)
    text = complaint(TI2V, ti2v)
    assert path.name in text and "download it again" in text
    assert keep != 0.9 or "is cut off" in text


def test_too_long(ti2v):
    path = next(ti2v.glob(SHARD))
    path.write_bytes(path.read_bytes() + b"more")
    assert "is damaged" in complaint(TI2V, ti2v)


def test_noise_in_place_of_weights(ti2v):
    next(ti2v.glob(SHARD)).write_bytes(bytes(range(256)) * 8)
    (ti2v / VAE22).write_bytes(bytes(range(256)) * 8)
    text = complaint(TI2V, ti2v)
    assert "not a safetensors file" in text and "not a PyTorch file in zip format" in text


def test_several_damaged_files_are_counted(ti2v):
    shards = list(ti2v.glob("diffusion_pytorch_model-*"))
    for shard in shards:
        shard.write_bytes(b"")
    assert f"{len(shards) - 1} more files" in complaint(TI2V, ti2v)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"weight_map": {"a": "../../secret.safetensors"}}'])
def test_bad_index(ti2v, content):
    (ti2v / DIT_INDEX).write_text(content)
    assert DIT_INDEX in complaint(TI2V, ti2v)


@pytest.mark.parametrize("content", ["", "[]", "version https://git-lfs.github.com/spec/v1"])
def test_bad_config(ti2v, content):
    (ti2v / "config.json").write_text(content)
    assert "config.json" in complaint(TI2V, ti2v)


def test_tensor_in_an_unknown_format(t2v):
    path = t2v / "high_noise_model" / "diffusion_pytorch_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"BF16"', b'"NVF4"', 1))
    assert "NVF4, which this version cannot read" in complaint(T2V, t2v)


# ------------------------------------------------------------------------------------------------- another model


def test_missing_unexpected_and_misshaped_names(t2v):
    path = t2v / "high_noise_model" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    for name in [name for name in state if name.startswith("blocks.1.cross_attn.")]:
        state.pop(name)
    state |= {"img_emb.proj": torch.ones(1), "head.head.bias": torch.ones(3)}
    save_file(state, path)
    text = complaint(T2V, t2v)
    assert "10 missing (blocks.1.cross_attn.q.weight, blocks.1.cross_attn.q.bias, blocks.1.cross_attn.k.weight, ...)" in text
    assert "1 unexpected (img_emb.proj)" in text and "head.head.bias is [3] instead of [64]" in text


def test_config_of_a_published_model(ti2v):
    (ti2v / "config.json").write_text(json.dumps(config_json(T2V_A14B)))
    text = complaint(TI2V, ti2v)
    assert len(text.splitlines()) == 1
    assert "has dim 5120, but tiny-ti2v-5B has dim 48" in text and "this looks like t2v-A14B; use --task t2v-A14B" in text


def test_config_of_another_task_with_the_same_sizes(t2v):
    config = config_json(T2V) | {"model_type": "s2v"}
    (t2v / "high_noise_model" / "config.json").write_text(json.dumps(config))
    assert "model_type 's2v'" in complaint(T2V, t2v)


def test_folder_of_a_model_with_experts(t2v):
    for name in ("high_noise_model", "low_noise_model"):
        (t2v / name / "config.json").write_text(json.dumps(config_json(I2V_A14B)))
    assert "use --task i2v-A14B" in complaint(TI2V, t2v)
    assert guess_model(t2v) == "i2v-A14B"


def test_folder_of_a_model_without_experts(ti2v):
    (ti2v / "config.json").write_text(json.dumps(config_json(TI2V_5B)))
    text = complaint(T2V, ti2v)
    assert "lacks high_noise_model and low_noise_model" in text and "use --task ti2v-5B" in text


@pytest.mark.parametrize("spec", [spec for spec in MODELS.values() if spec.available], ids=lambda spec: spec.name)
def test_every_model_is_recognised(tmp_path, spec):
    where = tmp_path / spec.experts[-1].folder
    where.mkdir(exist_ok=True)
    (where / "config.json").write_text(json.dumps(config_json(spec)))
    assert guess_model(tmp_path) == spec.name


def test_nothing_is_guessed_from_nothing(tmp_path, ti2v):
    assert guess_model(tmp_path) is None
    assert guess_model(ti2v) is None  # a config.json, but of no model in the table


def test_other_vae_beside_the_model(ti2v, t2v):
    shutil.move(t2v / "Wan2.1_VAE.pth", ti2v / "Wan2.1_VAE.pth")
    shutil.move(ti2v / VAE22, t2v / VAE22)
    assert "14B models use Wan2.1_VAE.pth" in complaint(T2V, t2v)
    assert "ti2v models use Wan2.2_VAE.pth" in complaint(TI2V, ti2v)


def test_other_vae_under_the_right_name(ti2v, t2v):
    shutil.copy(ti2v / VAE22, t2v / "Wan2.1_VAE.pth")
    text = complaint(T2V, t2v)
    assert "this is a 2.2 VAE, and 14B models use Wan2.1_VAE.pth" in text and "does not hold the VAE of" in text


def test_bundled_folder():
    with pytest.raises(CheckpointError, match="does not ship with Kinograph"):
        bundled_folder(TI2V_5B)
    with pytest.raises(CheckpointError, match="install Kinograph again"):
        bundled_folder(replace(TI2V, bundled="absent"))
