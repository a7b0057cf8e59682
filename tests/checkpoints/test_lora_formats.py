"""LoRA files: every family's keys to the published names, and what is said of files that do not belong."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_files import FAMILIES, TARGETS, diffusers_path, full_differences, low_rank, write
from reference import manifest

from kinograph.checkpoints import lora_formats
from kinograph.checkpoints.lora_formats import (
    HIGH,
    LOW,
    Difference,
    LoraTensors,
    choice_notes,
    guess_expert,
    guess_models,
    key_notes,
    match,
    model_shapes,
    parse_key,
    read_lora,
    require_fit,
    spellings,
)
from kinograph.config import ANIMATE_14B, I2V_NANO, T2V_A14B, T2V_NANO, TI2V_5B, TI2V_NANO, tiny
from kinograph.errors import CheckpointError

SPEC = tiny(T2V_A14B)
SHAPES = model_shapes(SPEC)


def lora(tensors, *, name="style.safetensors", **metadata) -> LoraTensors:
    return LoraTensors(path=Path("loras") / name, tensors=tensors, metadata=metadata)


def some(family="comfyui", **options) -> dict[str, torch.Tensor]:
    return low_rank(SHAPES, FAMILIES[family], **options)[0]


# -------------------------------------------------------------------------------------------------------- spelling


@pytest.mark.parametrize("name", ["t2v-A14B", "ti2v-5B"])
def test_no_two_modules_of_a_published_model_share_a_spelling(name):
    names = manifest(f"{name}.dit")
    table = spellings(names)
    weights = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    for path in weights:
        for spelling in {path, diffusers_path(path), path.replace(".", "_"), diffusers_path(path).replace(".", "_")}:
            assert table[spelling] == path
    assert len({diffusers_path(path) for path in weights}) == len(weights)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name):
    tensors, differences = low_rank(SHAPES, FAMILIES[name], alpha=2.0, rank=4)
    contents = match(lora(tensors), SHAPES)
    assert contents.fits and contents.families == (name.partition(",")[0],)
    assert {change.parameter for change in contents.low_rank} == set(differences)
    assert contents.ranks == (4,)
    assert contents.alphas == ((2.0,) if FAMILIES[name].has_alpha else (None,))


def test_every_weight_of_a_block_in_every_family():
    names = [name for name, shape in SHAPES.items() if name.startswith("blocks.1.") and name.endswith(".weight") and len(shape) > 1]
    paths = [name.removesuffix(".weight") for name in names]
    for family in FAMILIES.values():
        contents = match(lora(low_rank(SHAPES, family, targets=paths)[0]), SHAPES)
        assert contents.fits and {change.parameter for change in contents.low_rank} == {f"{path}.weight" for path in paths}


def test_full_differences():
    tensors, differences = full_differences(SHAPES)
    contents = match(lora(tensors), SHAPES)
    assert contents.fits and {change.parameter for change in contents.changes} == set(differences)
    assert all(isinstance(change, Difference) for change in contents.changes)


@pytest.mark.parametrize(
    "key", ["diffusion_model.blocks.1.diff_m", "diffusion_model.blocks.1.modulation.diff", "transformer.blocks.1.scale_shift_table.diff"]
)
def test_spellings_of_a_modulation(key):
    contents = match(lora({key: torch.zeros(6, SPEC.dit.dim)}), SHAPES)  # a leading 1 more or less is no difference
    assert [change.parameter for change in contents.changes] == ["blocks.1.modulation"]


def test_keys_that_are_not_of_a_lora():
    assert parse_key("blocks.0.self_attn.q.weight") is None
    assert parse_key("scaled_fp8") is None


# ---------------------------------------------------------------------------------------------------------- alphas


def test_alphas_in_the_metadata_of_diffusers():
    settings = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn1.to_q": 6}}
    contents = match(lora(some("diffusers"), lora_adapter_metadata=json.dumps(settings)), SHAPES)
    factors = {change.parameter: change.factor for change in contents.low_rank}
    assert factors["blocks.0.self_attn.q.weight"] == 1.5
    assert {factor for name, factor in factors.items() if "self_attn" not in name} == {2.0}


def test_rank_stabilised_alphas():
    settings = {"lora_alpha": 8, "use_rslora": True}
    contents = match(lora(some("peft"), lora_adapter_metadata=json.dumps(settings)), SHAPES)
    assert {change.factor for change in contents.low_rank} == {8 / 4**0.5}


def test_a_missing_alpha_is_said():
    file = lora(some("diffusers"))
    assert any("no alpha" in note and "rank = 4" in note for note in key_notes(file, match(file, SHAPES)))
    file = lora(some("comfyui"))
    assert key_notes(file, match(file, SHAPES)) == []


# --------------------------------------------------------------------------------------------------- keys left over


@pytest.mark.parametrize(
    "key",
    [
        "diffusion_model.img_emb.proj.1.lora_down.weight",
        "diffusion_model.img_emb.proj.0.diff",
        "lora_unet_blocks_0_cross_attn_k_img.lora_up.weight",
        "transformer.blocks.0.attn2.add_v_proj.lora_A.weight",
        "diffusion_model.blocks.0.cross_attn.norm_k_img.diff",
    ],
)
def test_image_keys_of_wan21_are_reported_and_skipped(key):
    file = lora({**some(), key: torch.zeros(4, 4)})
    contents = match(file, SHAPES)
    assert contents.fits and contents.wan21_image == (key,)
    assert "image input of Wan2.1" in key_notes(file, contents)[0]


@pytest.mark.parametrize(
    "key", ["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "text_encoder.encoder.block.0.wi.lora_A.weight"]
)
def test_text_encoder_keys_are_skipped_with_a_notice(key):
    file = lora({**some(), key: torch.zeros(4, 4)})
    contents = match(file, SHAPES)
    assert contents.fits and contents.text_encoder == (key,)
    assert "text encoder" in key_notes(file, contents)[0]


def test_other_keys_are_an_error_that_lists_them():
    keys = [f"diffusion_model.blocks.{i}.self_attn.q.lora_down.weight" for i in range(7, 12)]
    file = lora({**some(), **{key: torch.zeros(4, 48) for key in keys}, "what.is.this": torch.zeros(1)})
    contents = match(file, SHAPES)
    with pytest.raises(CheckpointError, match=r"6 keys .* match nothing .*blocks\.7\.self_attn.*, \.\.\.\); use --lora_ignore_unmatched"):
        require_fit(file, contents, SPEC)
    require_fit(file, contents, SPEC, ignore_unmatched=True)


def test_a_file_of_image_keys_alone_changes_nothing():
    file = lora({"diffusion_model.img_emb.proj.0.diff": torch.zeros(4)})
    with pytest.raises(CheckpointError, match="changes nothing"):
        require_fit(file, match(file, SHAPES), SPEC, ignore_unmatched=True)


# ------------------------------------------------------------------------------------------------------ wrong files


@pytest.mark.parametrize(
    "key, kind",
    [
        ("lora_unet_blocks_0_self_attn_q.hada_w1_a", "LoHa"),
        ("lora_unet_blocks_0_self_attn_q.lokr_w1", "LoKr"),
        ("diffusion_model.blocks.0.self_attn.q.dora_scale", "DoRA"),
        ("base_model.model.blocks.0.self_attn.q.lora_magnitude_vector.default.weight", "DoRA"),
        ("lycoris_blocks_0_attn1_to_q.oft_blocks", "OFT"),
    ],
)
def test_other_methods_are_refused_by_name(tmp_path, key, kind):
    path = write(tmp_path / "other.safetensors", {**some(), key: torch.zeros(4)})
    with pytest.raises(CheckpointError, match=f"is a {kind}, which"):
        read_lora(path)


def test_dora_that_only_the_metadata_names(tmp_path):
    path = write(tmp_path / "x.safetensors", some("diffusers"), {"lora_adapter_metadata": json.dumps({"transformer.use_dora": True})})
    with pytest.raises(CheckpointError, match="DoRA"):
        read_lora(path)


def test_files_that_are_no_lora(tmp_path):
    with pytest.raises(CheckpointError, match="holds a whole model"):
        read_lora(write(tmp_path / "model.safetensors", {"patch_embedding.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"no LoRA keys .first key: x"):
        read_lora(write(tmp_path / "x.safetensors", {"x": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match="does not exist"):
        read_lora(tmp_path / "absent.safetensors")
    (tmp_path / "page.safetensors").write_text("<!doctype html><html>")
    with pytest.raises(CheckpointError, match="web page"):
        read_lora(tmp_path / "page.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="give the LoRA file inside it"):
        read_lora(tmp_path / "folder")


def test_half_a_pair_and_two_of_a_kind():
    tensors = some()
    del tensors["diffusion_model.blocks.0.ffn.0.lora_up.weight"]
    with pytest.raises(CheckpointError, match="without its partner"):
        match(lora(tensors), SHAPES)
    with pytest.raises(CheckpointError, match="two tensors for one place"):
        match(lora({**some(), **some("kohya")}), SHAPES)
    tensors = some()
    tensors["diffusion_model.blocks.0.ffn.0.lora_up.weight"] = torch.zeros(SPEC.dit.ffn_dim, 5)
    with pytest.raises(CheckpointError, match=r"has rank 4, .* 5"):
        match(lora(tensors), SHAPES)


def test_a_lora_for_another_model_names_both():
    file = lora(low_rank(model_shapes(TI2V_NANO), FAMILIES["comfyui"], targets=TARGETS[:4])[0])
    contents = match(file, model_shapes(T2V_NANO))
    words = rf"LoRA for ti2v-nano, not for t2v-nano: blocks.*{TI2V_NANO.dit.dim}\] there and .*{T2V_NANO.dit.dim}\] here"
    with pytest.raises(CheckpointError, match=words):
        require_fit(file, contents, T2V_NANO, ignore_unmatched=True)


def test_one_layer_of_another_model_may_be_left_out():
    """A text-to-video LoRA on the image model: only the patch embedding differs."""
    tensors, _ = low_rank(model_shapes(T2V_NANO), FAMILIES["comfyui"], targets=(*TARGETS[:4], "patch_embedding"))
    file, shapes = lora(tensors), model_shapes(I2V_NANO)
    contents = match(file, shapes)
    with pytest.raises(CheckpointError, match=r"for t2v-nano or s2v-nano, not for i2v-nano.*leave out the 1 that do not fit with --lora"):
        require_fit(file, contents, I2V_NANO)
    require_fit(file, contents, I2V_NANO, ignore_unmatched=True)


# --------------------------------------------------------------------------------------------------- what is it for


@pytest.mark.parametrize(
    ("spec", "fitting"),
    [
        (TI2V_NANO, ["ti2v-nano"]),
        (TI2V_5B, ["ti2v-5B"]),
        (T2V_NANO, ["t2v-nano", "s2v-nano"]),  # the others take image channels beside the latents
        (I2V_NANO, ["i2v-nano", "animate-nano"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_models_by_shapes(spec, fitting):
    shapes = model_shapes(spec)
    targets = ["blocks.0.self_attn.q", "patch_embedding"]
    found = guess_models(lora(low_rank(shapes, FAMILIES["kohya"], targets=targets)[0]))
    assert list(found) == fitting and not choice_notes(found)


def test_models_that_a_file_cannot_tell_apart():
    tensors, _ = low_rank(model_shapes(T2V_NANO), FAMILIES["kohya"], targets=TARGETS[:4])
    assert list(guess_models(lora(tensors))) == ["t2v-nano", "i2v-nano", "s2v-nano", "animate-nano"]


def test_a_prefix_for_one_of_two_experts_tells_models_with_one_apart():
    tensors, _ = low_rank(model_shapes(T2V_NANO), FAMILIES["diffusers"], targets=TARGETS[:4])
    second = {name.replace("transformer.", "transformer_2."): tensor for name, tensor in tensors.items()}
    assert list(guess_models(lora(second))) == ["t2v-nano", "i2v-nano"]


def test_a_lora_of_the_animation_model():
    """As the one for relighting: every linear of the blocks, those for the picture too."""
    targets = ["blocks.0.self_attn.q", "blocks.39.cross_attn.k_img", "blocks.39.cross_attn.v_img", "blocks.39.ffn.0"]
    found = guess_models(lora(low_rank(model_shapes(ANIMATE_14B), FAMILIES["peft"], targets=targets)[0]))
    assert list(found) == ["animate-14B", "t2v-A14B", "i2v-A14B", "s2v-14B"]
    assert [len(contents.changes) for contents in found.values()] == [4, 2, 2, 2]
    assert choice_notes(found) == [
        "4 keys are for an image input, which of these only animate-14B has; t2v-A14B, i2v-A14B, s2v-14B would skip them"
    ]


@pytest.mark.parametrize(
    "name, expert",
    [
        ("wan22_style_high_noise.safetensors", HIGH),
        ("Wan2.2-Lightning-HIGH-v1.safetensors", HIGH),
        ("myStyleLowNoise.safetensors", LOW),
        ("lora-low-000020.safetensors", LOW),
        ("lownoise.safetensors", LOW),
        ("slow_motion_flow.safetensors", None),
        ("highway.safetensors", None),
        ("high_and_low.safetensors", None),
    ],
)
def test_the_expert_by_file_name(name, expert):
    guess = guess_expert(lora({}, name=name))
    assert (guess.expert if guess else None) == expert
    assert guess is None or guess.because == "its file name"


def test_the_expert_by_metadata_folder_and_prefix():
    assert guess_expert(lora({}, ss_output_name="my_low_noise")).expert == LOW
    deep = LoraTensors(path=Path("/loras/high_noise_lora/weights.safetensors"), tensors={})
    assert guess_expert(deep).expert == HIGH
    second = {f"transformer_2.{name.removeprefix('transformer.')}": tensor for name, tensor in some("diffusers").items()}
    assert guess_expert(lora(second)).expert == LOW


def test_a_file_for_both_experts():
    first = some("diffusers", seed=1)
    second = {name.replace("transformer.", "transformer_2."): tensor for name, tensor in some("diffusers", seed=2).items()}
    contents = match(lora({**first, **second}), SHAPES)
    assert {change.expert for change in contents.changes} == {HIGH, LOW} and len(contents.changes) == 2 * len(TARGETS)
    # A single transformer is written with the same prefix whichever it is for.
    assert {change.expert for change in match(lora(first), SHAPES).changes} == {None}
    assert match(lora({**first, **second}), SHAPES, experts=["all_noise"]).changes == ()


def test_the_families_table_of_the_docstring_is_complete():
    named = {family for _, family, _ in lora_formats._PREFIXES}
    assert all(f"| {family}" in lora_formats.__doc__ for family in named)
