"""Drawn talkers, their sounds, the judge on true clips, and a step of each training at tiny sizes."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kinograph.config import S2V_NANO, SpeechEncoderConfig
from kinograph.models.vae import VAE, init_weights
from kinograph.training import talkers, train_s2v, train_speech_encoder
from kinograph.training.flow import trainer_of
from kinograph.training.s2v_pool import Texts, pools_of
from kinograph.training.s2v_recipe import S2VRecipe
from kinograph.training.s2v_samples import Judged
from kinograph.training.s2v_sounds import sound_pieces
from kinograph.training.s2v_vae import TalkerClips
from kinograph.training.shared_clips import SharedClips
from kinograph.training.speech_sounds import FPS, babble, load_waves, loudness, save_waves, vowel_colour
from kinograph.training.talker_judge import agreement, identity_error, joint_error, mouth_opening
from kinograph.training.trainer import TrainConfig
from kinograph.training.vae_tuning import finish_vae, vae_trainer, vae_tuning

TINY_ENCODER = SpeechEncoderConfig(dim=16, ffn_dim=16, num_heads=2, num_layers=2, conv_dim=8, conv_pos_groups=4)


@pytest.fixture(scope="module")
def wave() -> np.ndarray:
    return babble(2.0, np.random.default_rng(0))


def tiny_recipe(**changes: object) -> S2VRecipe:
    dit = replace(
        S2V_NANO.dit, dim=48, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=32, text_dim=32, text_len=8, audio_dim=16,
        audio_inject_layers=(0, 1),
    )  # fmt: skip
    text = replace(S2V_NANO.text, vocab_size=300, dim=32, dim_attn=32, dim_ffn=32, num_heads=2, num_layers=1, text_len=8)
    vae = replace(S2V_NANO.vae, base_dim=8, decoder_dim=8)
    spec = replace(
        S2V_NANO, dit=dit, text=text, vae=vae, sizes=((64, 64),), num_frames=4, num_steps=1, speech_encoder=TINY_ENCODER
    )
    sizes = {"motion_batch": 2, "first_batch": 1, "num_clips": 4, "pool_seconds": 1000.0, "num_eval": 1, "babble_seconds": 1.0}
    return S2VRecipe(spec=spec, **{**sizes, **changes})  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("palette", list(talkers.PALETTES))
def test_a_clip_is_a_function_of_the_person_and_stays_in_range(palette: str) -> None:
    times, mouth = torch.arange(3.0)[None], torch.linspace(0, 1, 3).expand(4, -1)
    person = talkers.sample_people(4, 0, palette=palette)
    clip = talkers.draw(person, times, mouth, mouth, side=64)
    again = talkers.draw(talkers.sample_people(4, 0, palette=palette), times, mouth, mouth, side=64)
    assert clip.shape == (4, 3, 3, 64, 64) and torch.equal(clip, again)
    assert clip.min() >= -1 and clip.max() <= 1.001
    assert not torch.allclose(clip, talkers.draw(talkers.sample_people(4, 1, palette=palette), times, mouth, mouth, side=64))


def test_only_the_mouth_depends_on_what_is_heard() -> None:
    person, times = talkers.sample_people(3, 2), torch.zeros(1, 1)
    closed, opened = (talkers.draw(person, times, torch.full((3, 1), x), torch.zeros(3, 1)) for x in (0.0, 1.0))
    changed = (closed - opened).abs().amax((0, 1, 2)) > 0.05
    rows, columns = changed.nonzero(as_tuple=True)
    assert rows.min() >= 48 and rows.max() <= 80 and columns.min() >= 44 and columns.max() <= 84
    assert columns.max() - columns.min() >= 24


def test_blinks_and_gestures() -> None:
    person, times = talkers.sample_people(2, 3), torch.arange(80.0)[None]
    is_open = talkers.eyes_open(person, times)
    assert (is_open.amin(1) < 0.3).all() and (is_open.mean(1) > 0.85).all()
    moved = [talkers.joints(person.gesturing(g), times)[:, :, -1].std(1).max() for g in (0.0, 1.0)]
    assert moved[0] < 0.02 and moved[1] > 0.03
    still, moving = (talkers.draw_pose(person.gesturing(g), times[:, :2], side=64) for g in (0.0, 1.0))
    assert still.shape == (2, 3, 2, 64, 64) and still.amin() == -1 and not torch.equal(still, moving)


# ------------------------------------------------------------------------------------------------------------- sound


def test_loudness_follows_the_sound_at_any_level_and_is_0_in_silence(wave: np.ndarray) -> None:
    loud = torch.from_numpy(np.concatenate([wave, np.zeros(8000, dtype=np.float32)]))
    series = loudness(loud)
    assert series.shape == (40,) and series.max() > 0.5
    assert (series[34:] == 0).all()
    assert torch.allclose(series, loudness(0.1 * loud), atol=1e-3)
    burst = torch.zeros(16000)
    burst[8000:9000] = torch.sin(torch.arange(1000.0))
    assert loudness(burst).argmax() == 8000 * FPS // 16000
    assert loudness(burst, delay=1000).argmax() == 9


def test_vowel_colour_rises_with_the_pitch_of_the_spectrum() -> None:
    time = torch.arange(16000) / 16000
    low, high = (vowel_colour(torch.sin(2 * torch.pi * hertz * time))[2:-3].mean() for hertz in (400.0, 2500.0))
    assert low < 0.2 < 0.9 < high
    assert (vowel_colour(torch.zeros(16000)) == 0.5).all()


def test_waves_are_saved_as_they_are(wave: np.ndarray, tmp_path: Path) -> None:
    save_waves([wave, wave[:5000]], tmp_path / "waves.npz")
    first, second = load_waves(tmp_path / "waves.npz")
    assert len(second) == 5000 and np.corrcoef(first, wave)[0, 1] > 0.9999


# ------------------------------------------------------------------------------------------------------------- judge


def test_the_judge_is_right_on_true_clips(wave: np.ndarray) -> None:
    person, times = talkers.sample_people(2, 5).gesturing(1.0), torch.arange(32.0)[None]
    series = loudness(torch.from_numpy(wave)).expand(2, -1)
    clip = talkers.draw(person, times, series, series * 0 + 0.5)
    picture = talkers.draw(person, times[:, :1] + 90, series[:, :1] * 0, series[:, :1])
    places = talkers.joints(person, times)
    other = talkers.draw(talkers.sample_people(2, 6), times, series, series)
    for row in range(2):
        seen = agreement(mouth_opening(clip[row]), series[row])
        assert seen.correlation > 0.97 and abs(seen.lag) < 0.2 and seen.closed < 0.03
        assert max(identity_error(clip[row], picture[row]).values()) < 0.02
        assert max(identity_error(other[row], picture[row]).values()) > 0.05
        assert joint_error(clip[row], picture[row], places[row]) < 0.01
        assert joint_error(clip[row], picture[row], places[row].roll(12, 0)) > 0.03


def test_agreement_finds_a_lag(wave: np.ndarray) -> None:
    series = loudness(torch.from_numpy(wave))
    assert agreement(series.roll(2)[2:], series[2:]).lag == pytest.approx(2, abs=0.3)
    assert agreement(torch.zeros(30), series).correlation == 0


# ---------------------------------------------------------------------------------------------------------- training


def test_a_step_of_the_speech_encoder_and_its_files(wave: np.ndarray, tmp_path: Path) -> None:
    encoder, heads = train_speech_encoder.fit(TINY_ENCODER, [wave], steps=1, batch=1, report=lambda line: None)
    train_speech_encoder.save_encoder(encoder, tmp_path)
    loaded = train_speech_encoder.load_encoder(tmp_path, TINY_ENCODER)
    one = torch.from_numpy(wave)[None]
    assert torch.allclose(loaded(one), encoder(one), atol=0.05)
    assert train_speech_encoder.heard(loaded, heads, [wave]).shape == (train_speech_encoder.NUM_TARGETS,)


def test_a_decoder_is_tuned_and_latents_stay(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    torch.manual_seed(0)
    vae = VAE(recipe.spec.vae).eval()
    init_weights(vae)
    clips = SharedClips.sampled(device=torch.device("cpu"), batch=4, count=4)
    video, weight = clips()
    assert video.shape == (4, 3, 17, 128, 128) and weight.shape == (4, 1, 17, 128, 128) and video.abs().max() <= 1
    def small() -> tuple[torch.Tensor, torch.Tensor]:
        return video[:, :, :5, ::4, ::4], weight[:, :, :5, ::4, ::4]

    tuning = vae_tuning(recipe.spec.vae, vae.state_dict(), small, device=torch.device("cpu"), dtype=torch.float32, decoder_only=True)
    vae_trainer(tuning, TrainConfig(budget_steps=2, warmup_steps=0)).run()
    tuned = finish_vae(tuning, tmp_path, dtype=torch.float32)
    clip = small()[0]
    latents = vae.encode(clip, whole=True)
    torch.testing.assert_close(tuned.encode(clip, whole=True), latents, atol=0.01, rtol=0)  # it is kept in half precision
    assert not torch.allclose(tuned.decode(latents, whole=True), vae.decode(latents, whole=True))


def test_steps_of_the_vae_and_of_the_transformer(wave: np.ndarray, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    torch.manual_seed(0)
    vae = VAE(recipe.spec.vae)
    init_weights(vae)
    clips = TalkerClips(talkers.sample_people(4, 1), recipe.side, batch=2, frames=9)
    tuning = vae_tuning(recipe.spec.vae, vae.state_dict(), clips, device=torch.device("cpu"), dtype=torch.float32)
    vae_trainer(tuning, TrainConfig(budget_steps=1, warmup_steps=0)).run()
    vae = finish_vae(tuning, tmp_path, dtype=torch.float32)
    encoder, _ = train_speech_encoder.fit(TINY_ENCODER, [wave], steps=0)
    sounds = sound_pieces([wave], recipe, encoder)
    pools = pools_of(recipe, vae, sounds)
    assert [len(pool) for pool, _ in pools] == [3, 1] and pools[1][0].motion is None
    assert pools[0][0].motion is not None and pools[0][0].motion.shape[2] == 19
    texts = Texts.encode(recipe, None, None, torch.device("cpu"))
    judged = Judged(recipe, vae, sounds)
    state = train_s2v.initial_state(recipe, None)
    training = train_s2v.prepare(recipe, pools, texts, judged, tmp_path, dtype=torch.float32, state=state)
    start = training.weights.master.clone()
    trainer_of(training, TrainConfig(budget_steps=2, warmup_steps=0), compiled=False).run()
    changed = training.weights.named((training.weights.master != start).float())
    for name in ("blocks.0.ffn.0.weight", "audio_injector.injector.1.o.weight", "cond_encoder.weight", "frame_packer.proj_2x.weight"):
        assert changed[f"dit.{name}"].any(), name
    assert "eval sound and pose" in training.evaluate()
    training.dit.load_state_dict(train_s2v.load_s2v(tmp_path))


def test_training_starts_from_an_image_model() -> None:
    recipe = tiny_recipe()
    base = train_s2v.initial_state(replace(recipe, seed=1), None)
    image = {name: tensor for name, tensor in base.items() if not name.startswith(("audio", "casual", "cond", "frame", "train"))}
    image["patch_embedding.weight"] = torch.cat([image["patch_embedding.weight"], torch.ones(48, 20, 1, 2, 2)], dim=1)
    state = train_s2v.initial_state(recipe, image)
    assert torch.equal(state["blocks.1.ffn.0.weight"], base["blocks.1.ffn.0.weight"])
    assert torch.equal(state["frame_packer.proj.weight"], base["patch_embedding.weight"])
