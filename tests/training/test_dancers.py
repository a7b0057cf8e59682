"""Dancers: the drawing, the judge on true clips, and one training step, judgement and adapter of a tiny animation model."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kinograph.config import ANIMATE_NANO, NANO_VAE_21, AnimateConfig, ImageEncoderConfig, ModelSpec
from kinograph.models.vae import VAE, init_weights
from kinograph.preprocess.animate.keypoints import Skeleton
from kinograph.preprocess.animate.skeleton import draw_skeleton
from kinograph.tasks.animate_clips import mask_channels
from kinograph.training import dancers, train_animate
from kinograph.training.animate_material import folded_mask, sample_material, with_guidance
from kinograph.training.animate_recipe import AnimateRecipe
from kinograph.training.animate_samples import light_shares, mouths
from kinograph.training.dance_judge import judge_dance
from kinograph.training.flow import trainer_of
from kinograph.training.low_rank import PREFIX, in_blocks
from kinograph.training.trainer import TrainConfig

SIDE = 128


def test_poses_are_those_of_the_products_own_drawing() -> None:
    material = sample_material(4, 0)
    body = material.joints(torch.arange(3), side=SIDE)
    drawn = dancers.PoseDrawing(SIDE, "cpu")(body)
    no_hand = np.zeros((21, 3))
    for clip in range(4):
        for frame in range(3):
            points = np.concatenate([body[clip, frame].double().numpy(), np.ones((20, 1))], axis=1)
            expected = draw_skeleton(Skeleton(points, no_hand, no_hand), width=SIDE, height=SIDE)
            assert np.array_equal(drawn[clip, :, frame].permute(1, 2, 0).numpy(), expected)


def test_the_judge_sees_mouths_open_and_the_light_of_the_scene() -> None:
    times, recipe = torch.arange(17), AnimateRecipe(spec=ANIMATE_NANO)
    material = sample_material(6, 5, replace_share=1.0)
    side, lit = recipe.side, material.character.colours * material.stage.light[:, None]
    clip = material.clip(times, side=side, lit=True)
    found = mouths(clip, material, lit, times, side=side)
    assert found and min(found) > 0.95
    backwards = mouths(clip.flip(2), material, lit, times, side=side)
    assert sum(backwards) / len(backwards) < 0.5
    for video, share in ((clip, 1.0), (material.clip(times, side=side), 0.0)):
        shares = light_shares(video, material, recipe, times)
        assert shares and max(abs(seen - share) for seen in shares) < 1e-4


def test_the_judge_finds_the_joints_and_colours_of_true_clips() -> None:
    material = sample_material(4, 1, split="held_out", replace_share=1.0)
    times = torch.arange(0, 17, 4)
    clip, body = material.clip(times, side=SIDE), material.joints(times, side=SIDE)
    background = (material.background(side=SIDE) * 2 - 1)[:, :, None].expand_as(clip)
    mask = material.mask(times, side=SIDE)
    verdicts = [
        judge_dance(clip[i], material.character.colours[i], body[i], background=background[i], mask=mask[i]) for i in range(4)
    ]
    assert sum(verdict.joint_error for verdict in verdicts) / 4 < 0.04
    assert max(verdict.colour_error for verdict in verdicts) < 0.03
    assert min(verdict.background_db or 0.0 for verdict in verdicts) > 60  # the mask covers every character
    shifted = judge_dance(clip[0].roll(16, dims=2), material.character.colours[0], body[0])
    assert shifted.joint_error > 0.08


def test_training_never_sees_the_held_out_movements() -> None:
    pairs = [
        set(zip(material.dance.arms.tolist(), material.dance.legs.tolist()))
        for material in (sample_material(300, 2, split=split) for split in dancers.SPLITS)
    ]
    assert pairs[0] and pairs[1] and not pairs[0] & pairs[1]


@pytest.mark.parametrize("given", [0, 1, 5])
def test_masks_are_folded_as_for_sampling(given: int) -> None:
    mask = (torch.rand(1, 9, 32, 32) > 0.5).float()
    expected = mask_channels(mask[0], num_frames=9, size=(4, 4), num_given=given)
    assert torch.equal(with_guidance(folded_mask(1 - mask, (4, 8, 8)), given)[0], expected)


def tiny_spec() -> ModelSpec:
    dit = AnimateConfig(
        dim=32, ffn_dim=32, num_heads=2, num_layers=2, in_dim=36, out_dim=16, text_dim=128, text_len=64,
        image_dim=16, face_size=16, motion_dim=16, num_motions=4, face_dim=8, face_every=2,
    )  # fmt: skip
    return replace(
        ANIMATE_NANO,
        dit=dit,
        vae=replace(NANO_VAE_21, base_dim=8, decoder_dim=8),
        image_encoder=ImageEncoderConfig(image_size=28, dim=16, num_heads=2, num_layers=2, out_dim=8),
        sizes=((64, 64),),
        num_frames=5,
        num_steps=2,
    )


def test_a_model_and_its_relighting_lora_are_trained_and_judged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = tiny_spec()
    vae = VAE(spec.vae)
    init_weights(vae)
    vae.eval().requires_grad_(False)
    recipe = AnimateRecipe(spec=spec, batch=2, num_clips=2, num_eval=1)
    text = torch.zeros(1, 64, 128)
    lines: list[str] = []
    config = TrainConfig(budget_steps=2, warmup_steps=1)

    def run(recipe: AnimateRecipe, initial: dict) -> train_animate.AnimateTraining:
        training = train_animate.prepare(
            recipe, vae, text, tmp_path, dtype=torch.float32, initial=initial, motion_steps=2, say=lines.append
        )
        before = training.weights.master.clone()
        trainer_of(training, config, compiled=False).run()
        assert not torch.equal(before, training.weights.master)
        lines.append(training.evaluate())
        return training

    taken = "blocks.0.self_attn.q.weight"
    run(recipe, {train_animate.DIT: {taken: torch.zeros(32, 32), "blocks.0.ffn.0.weight": torch.zeros(3, 3)}})
    assert lines[0].startswith("1 tensors")
    assert "eval animation" in lines[-1] and "eval replacement" in lines[-1]

    saved = train_animate.load_animate(tmp_path)
    assert any(name.startswith("motion_encoder.") for name in saved[train_animate.DIT])
    training = run(replace(recipe, relight=True, rank=2), saved)
    adapter = load_file(tmp_path / train_animate.LORA_FOLDER / "adapter_model.safetensors")
    assert len(adapter) == 2 * 12 * spec.dit.num_layers
    assert all(name.startswith(f"{PREFIX}blocks.") and in_blocks(name) for name in adapter)
    with torch.no_grad():
        merged = training.averaged()[0].blocks[0].ffn[0].weight
    assert not torch.equal(merged, training.dit.blocks[0].ffn[0].weight)
