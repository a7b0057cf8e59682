"""The recipes at tiny sizes: statistics, pools, conditions, and the commands from tokenizer to checkpoint folder."""
from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinograph.checkpoints.layout import check_folder
from kinograph.config import NANO_VAE_21, NANO_VAE_22, TI2V_NANO, ModelSpec, VAEConfig
from kinograph.models.tokenizer import Tokenizer
from kinograph.models.vae import VAE, init_weights
from kinograph.sampling.masks import frame_mask
from kinograph.sampling.schedule import sample_t
from kinograph.training import flow, nano, train_dit, train_vae
from kinograph.training.captions import caption
from kinograph.training.latents import ClipSize, build_pool, caption_ids, conditioning_videos, fold_latent_statistics, latent_statistics
from kinograph.training.nano import encoders as nano_encoders
from kinograph.training.nano import members as nano_members
from kinograph.training.parts import save_parts
from kinograph.training.tokenizer import train_tokenizer
from kinograph.training.toybox import sample_scenes
from kinograph.training.trainer import TrainConfig

SIZE = ClipSize(frames=5, height=64, width=64)
TINY_TEXT = replace(TI2V_NANO.text, vocab_size=300, dim=32, dim_attn=32, dim_ffn=32, num_heads=2, num_layers=1, text_len=24)


def tiny_vae_config(version: str) -> VAEConfig:
    return replace(NANO_VAE_22 if version == "2.2" else NANO_VAE_21, base_dim=8, decoder_dim=8)


def tiny_spec(member: str = "ti2v-nano") -> ModelSpec:
    spec = nano.MEMBERS[member].spec
    dit = replace(spec.dit, dim=48, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=32, text_dim=32, text_len=24)
    return replace(spec, dit=dit, text=TINY_TEXT, vae=tiny_vae_config(spec.vae.version), sizes=((64, 64),), num_frames=5, num_steps=2)


def random_vae(version: str) -> VAE:
    torch.manual_seed(0)
    vae = VAE(tiny_vae_config(version))
    init_weights(vae)
    for parameter in vae.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return vae.requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    scenes, rng = sample_scenes(200, 0), random.Random(0)
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([caption(scenes, i, rng) for i in range(200)], TINY_TEXT.vocab_size, folder)
    return Tokenizer(folder, TINY_TEXT.text_len)


# ---------------------------------------------------------------------------------------------------------- latents


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_folding_statistics_changes_no_video_and_normalises_the_latents(version: str) -> None:
    vae, scenes = random_vae(version), sample_scenes(6, 0)
    video = SIZE.draw(scenes)
    before, log_variance = vae.decode(vae.encode(video), clamp=False), vae.encode_moments(video)[1]
    mean, std = latent_statistics(vae, scenes, SIZE, batch=4)
    fold_latent_statistics(vae, mean, std)
    assert torch.allclose(vae.decode(vae.encode(video), clamp=False), before, atol=1e-5)
    assert torch.allclose(vae.encode_moments(video)[1], log_variance - 2 * std.log()[:, None, None, None], atol=1e-5)
    mean, std = latent_statistics(vae, scenes, SIZE, batch=4)
    assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-4)
    assert torch.allclose(std, torch.ones_like(std), atol=1e-4)


def test_the_deviation_of_a_channel_without_information_is_its_posteriors() -> None:
    vae = random_vae("2.2")
    z = vae.config.z_dim
    vae.conv1.weight.zero_()
    vae.conv1.bias.zero_()  # every posterior is now N(0, 1)
    mean, std = latent_statistics(vae, sample_scenes(2, 0), SIZE)
    assert torch.allclose(mean, torch.zeros(z)) and torch.allclose(std, torch.ones(z))


def test_a_pool_holds_what_the_vae_makes_of_the_clips(tokenizer: Tokenizer) -> None:
    vae, scenes = random_vae("2.1"), sample_scenes(5, 1)
    pool = build_pool(vae, scenes, tokenizer, SIZE, image_conditions=True, variants=2, batch=2, dtype=torch.float32)
    video = SIZE.draw(scenes)
    assert torch.allclose(pool.latents, vae.encode(video), atol=1e-5)
    grey = torch.zeros_like(video)
    grey[:, :, 0], grey[:, :, -1] = video[:, :, 0], video[:, :, -1]
    assert torch.allclose(pool.first_last, vae.encode(grey), atol=1e-5)
    assert torch.equal(conditioning_videos(video, has_last=False)[:, :, 1:], torch.zeros_like(video[:, :, 1:]))
    assert pool.ids.shape == (5, 2, TINY_TEXT.text_len) and pool.lengths.min() > 1
    assert pool.empty_length == 1 and pool.num_bytes > 0


def test_captions_are_the_same_for_the_same_seed(tokenizer: Tokenizer) -> None:
    scenes = sample_scenes(4, 1)
    first, again = (caption_ids(scenes, tokenizer, variants=3, seed=5) for _ in range(2))
    assert torch.equal(first[0], again[0]) and first[2] == again[2] and len(first[2]) == 4


# --------------------------------------------------------------------------------------------------------- the steps


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_three_steps_of_a_vae_on_crops_and_clips(version: str, tmp_path: Path) -> None:
    recipe = replace(
        train_vae.RECIPES[version],
        config=tiny_vae_config(version),
        size=SIZE,
        phases=(train_vae.CropPhase(side=32, batch=2, until=0.6), train_vae.CropPhase(side=0, batch=2, until=1.0)),
        num_scenes=32,
        num_eval=2,
    )
    training = train_vae.prepare(recipe, tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    start = training.weights.master.clone()
    train_vae.trainer_of(training, TrainConfig(budget_steps=3, warmup_steps=0), compiled=False).run()
    assert not torch.equal(training.weights.master, start) and torch.isfinite(training.weights.master).all()
    assert "PSNR" in training.evaluate()
    vae = train_vae.load_vae(tmp_path, recipe.config, device=torch.device("cpu"), dtype=torch.float32)
    _, std = latent_statistics(vae, training.held_out, SIZE)
    assert torch.allclose(std, torch.ones_like(std), atol=0.02)  # folded; the file is float16


def test_grey_clips_keep_their_pictures_alone(tmp_path: Path) -> None:
    recipe = replace(train_vae.RECIPES["2.1"], config=tiny_vae_config("2.1"), size=SIZE, grey_share=1.0, num_scenes=8, num_eval=1)
    training = train_vae.prepare(recipe, tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    video, weight = training._batch(train_vae.CropPhase(side=0, batch=16, until=1.0))
    has_last = video[:, :, -1].abs().amax((1, 2, 3)) > 0
    assert video[:, :, 0].abs().amax() > 0 and 0 < has_last.sum() < 16
    assert video[:, :, 1:-1].abs().max() == 0 and (weight[:, :, 1:-1] == 1).all()


def dit_training(member: str, tokenizer: Tokenizer, out: Path, **changes: object) -> train_dit.DiTTraining:
    spec = tiny_spec(member)
    sizes = {"batch": 4, "num_clips": 12, "captions_per_clip": 2, "num_eval": 4}
    recipe = train_dit.DiTRecipe(spec=spec, mode=nano.MEMBERS[member].mode, **sizes, **changes)
    vae = random_vae(spec.vae.version)
    pool = train_dit.pool_of(recipe, vae, tokenizer)
    return train_dit.prepare(recipe, pool, train_dit.Judged.prepare(recipe, vae, tokenizer), out, dtype=torch.float32)


@pytest.mark.parametrize("member", list(nano.MEMBERS))
def test_three_steps_of_a_transformer_in_every_mode(member: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    training = dit_training(member, tokenizer, tmp_path)
    start = training.weights.master.clone()
    flow.trainer_of(training, TrainConfig(budget_steps=3, warmup_steps=0), compiled=False).run()
    changed = training.weights.named((training.weights.master != start).float())
    assert all(changed[name].any() for name in ("dit.blocks.0.ffn.0.weight", "text_encoder.blocks.0.attn.q.weight"))
    line = training.evaluate()
    assert "eval prompt" in line and (member == "t2v-nano" or "eval picture" in line)
    assert (tmp_path / "dit-prompt.png").is_file()
    state = train_dit.load_dit(tmp_path)
    training.dit.load_state_dict(state["dit"])


def test_pinned_frames_are_clean_and_at_timestep_zero(tokenizer: Tokenizer, tmp_path: Path) -> None:
    training = dit_training("ti2v-nano", tokenizer, tmp_path, pinned_share=1.0)
    seen = {}

    def record(x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, channels: object) -> torch.Tensor:
        seen.update(x=x, t=t, text=text)
        return torch.zeros_like(x)

    training.dit.forward = record  # type: ignore[method-assign]
    training.loss()
    first = seen["x"][:, :, 0]
    assert all((training.pool.latents[:, :, 0] == row).all(dim=(1, 2, 3)).any() for row in first)
    assert (seen["t"][:, 0] == 0).all() and (seen["t"][:, 1:] > 0).all()


def test_channels_are_zero_or_a_mask_and_latents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = torch.arange(4)
    nothing = dit_training("i2v-nano", tokenizer, tmp_path, image_share=0.0)._channels(rows)
    assert nothing.shape[1] == 20 and nothing.abs().max() == 0
    training = dit_training("i2v-nano", tokenizer, tmp_path, image_share=1.0, last_share=1.0)
    channels = training._channels(rows)
    assert torch.equal(channels[:, 4:], training.pool.first_last[rows])
    assert torch.equal(channels[0, :4, :, 0, 0], frame_mask(5, has_last=True, stride=4))
    for has_last in (False, True):
        given = train_dit.given_frames(5, 4, has_last=has_last, device=torch.device("cpu"))
        assert torch.equal(given, frame_mask(17, has_last=has_last, stride=4))


def test_levels_stay_within_the_range_of_an_expert(tokenizer: Tokenizer, tmp_path: Path) -> None:
    training = dit_training("t2v-nano", tokenizer, tmp_path)
    training.recipe = replace(training.recipe, batch=4000, t_range=(0.875, 1.0))
    levels = training._levels(torch.device("cpu"))
    assert levels.min() >= 0.875 and levels.max() <= 1.0
    training.recipe = replace(training.recipe, t_range=(0.0, 1.0))
    torch.manual_seed(0)
    levels = training._levels(torch.device("cpu"))
    torch.manual_seed(0)
    assert torch.allclose(levels, sample_t(4000, shift=training.recipe.shift))


def test_an_expert_is_tuned_with_its_text_encoder_fixed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    base = dit_training("i2v-nano", tokenizer, tmp_path / "base")
    base.save()
    initial = train_dit.load_dit(tmp_path / "base")
    recipe = replace(base.recipe, t_range=(0.9, 1.0), train_text=False)
    training = train_dit.prepare(recipe, base.pool, base.judged, tmp_path / "high", dtype=torch.float32, initial=initial)
    assert training.judged is not None
    training.judged.recipe, training.judged.other = recipe, base.averaged()[0]
    flow.trainer_of(training, TrainConfig(budget_steps=1, warmup_steps=0), compiled=False).run()
    assert "eval picture" in training.evaluate()
    tuned = train_dit.load_dit(tmp_path / "high")
    assert all(torch.equal(tuned["text_encoder"][name], tensor) for name, tensor in initial["text_encoder"].items())
    assert any(not torch.equal(tuned["dit"][name], tensor) for name, tensor in initial["dit"].items())


def test_dropping_unused_channels_changes_nothing() -> None:
    wide, _ = train_dit.fresh_models(tiny_spec("i2v-nano"), seed=0)
    narrow, _ = train_dit.fresh_models(tiny_spec("t2v-nano"), seed=1)
    wide.head.head.weight.data.normal_()
    narrow.load_state_dict(train_dit.without_channels(wide.state_dict(), 16))
    x, t, text = torch.randn(1, 16, 2, 8, 8), torch.tensor([500.0]), torch.randn(1, 24, 32)
    assert torch.allclose(narrow(x, t, text), wide(x, t, text, torch.zeros(1, 20, 2, 8, 8)), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- commands


def test_two_members_are_exported_with_what_they_share_beside_them(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {name: replace(nano.MEMBERS[name], spec=tiny_spec(name)) for name in ("i2v-nano", "t2v-nano")}
    monkeypatch.setattr(nano_members, "MEMBERS", members)
    work = str(tmp_path / "work")
    save_parts(random_vae("2.1").state_dict(), work, train_vae.STEM)
    both = dict(zip((train_dit.DIT, train_dit.TEXT), train_dit.fresh_models(members["i2v-nano"].spec, seed=0)))
    weights = {f"{key}.{name}": tensor for key, model in both.items() for name, tensor in model.state_dict().items()}
    save_parts(weights, work, train_dit.STEM)
    tokenizer_folder = tmp_path / "work" / nano.TOKENIZER
    tokenizer_folder.mkdir()
    tokenizer_folder.joinpath("tokenizer.json").write_text("{}")
    for name in members:
        nano.main(["export", "--member", name, "--vae", work, "--dit", work, "--out", str(tmp_path / name), "--int8_vae", "--int8_text"])
    for name, member in members.items():
        stored = check_folder(member.spec, tmp_path / name)
        assert {part for part, found in stored.items() if found.contents.storage.startswith("int8")} == {"vae", "text_encoder"}
        assert stored["vae"].files[0].resolve() == tmp_path / "nano-shared" / "Wan2.1_VAE.pth"


def test_the_commands_from_nothing_to_a_checkpoint_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec()
    monkeypatch.setattr(nano_members, "MEMBERS", {"ti2v-nano": nano.Member(spec, "pinned")})
    monkeypatch.setattr(nano_encoders, "NUM_TOKENIZER_CAPTIONS", 100)
    monkeypatch.setattr(nano_encoders, "NANO_TEXT", TINY_TEXT)
    phases = (train_vae.CropPhase(side=32, batch=1, until=1.0),)
    recipe = replace(train_vae.RECIPES["2.2"], config=spec.vae, size=SIZE, phases=phases, num_scenes=8, num_eval=2)
    monkeypatch.setattr(train_vae, "RECIPES", {"2.2": recipe})
    work, common = str(tmp_path / "work"), ["--device", "cpu"]
    nano.main(["prepare", "--out", work])
    nano.main(["vae", "--kind", "2.2", "--steps", "2", "--out", work, *common])
    nano.main(["latents", "--kind", "2.2", "--vae", work, "--size", "64", *common])
    dit = ["dit", "--member", "ti2v-nano", "--vae", work, "--out", work, "--clips", "8", "--batch", "2", *common]
    dit += ["--text_steps", "2", "--text_captions", "64"]
    nano.main([*dit, "--steps", "2", "--stop_after", "0"])
    nano.main([*dit, "--steps", "2", "--resume", f"{work}/state-dit.pt"])
    nano.main([*dit, "--steps", "3", "--resume_light", f"{work}/resume"])
    folder = tmp_path / "checkpoint"
    nano.main(["export", "--member", "ti2v-nano", "--vae", work, "--dit", work, "--out", str(folder), "--int8"])
    assert set(check_folder(spec, folder)) == {"text_encoder", "all_noise", "vae"}
