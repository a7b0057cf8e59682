"""The model in the package, judged by its videos: a small version of `benchmarks/nano_judge.py` with fixed seeds.

What is right is a property of the shipped weights, so a change of sampler, models or files that spoils it is seen here.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kinograph
from benchmarks.dancer_judge import write_material
from kinograph.checkpoints.load import load_model
from kinograph.cli.main import main
from kinograph.config import NANO_VAE_21
from kinograph.media import read_video
from kinograph.models.vae import VAE
from kinograph.runtime.placement import Components, bundled_folder
from kinograph.training import talkers
from kinograph.training.animate_material import sample_material
from kinograph.training.animate_recipe import AnimateRecipe
from kinograph.training.animate_samples import light_shares
from kinograph.training.captions import captions
from kinograph.training.dance_judge import judge_dance
from kinograph.training.judge import judge, psnr
from kinograph.training.speech_sounds import babble, loudness
from kinograph.training.talker_judge import agreement, identity_error, mouth_opening
from kinograph.training.toybox import draw, sample_scenes

MODEL = "ti2v-nano"
LIMIT = 30e6  # bytes that this member may take in the package

ASKED = [  # prompt, then what must be seen: colour, shape, motion, background
    ("a large red star moves slowly to the right on a pale blue background", "red", "star", "right", "pale blue"),
    ("A purple heart going up on a white background.", "purple", "heart", "up", "white"),
    ("an orange square gets bigger, gray background", "orange", "square", "grow", "gray"),
    ("a video of a blue ring sliding to the left on a pale yellow backdrop", "blue", "ring", "left", "pale yellow"),
]


@pytest.fixture(scope="module")
def model() -> Components:
    return kinograph.load(MODEL)


def test_the_member_is_small_enough() -> None:
    folder = bundled_folder(kinograph.MODELS[MODEL])
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LIMIT


def test_the_command_makes_what_the_prompt_asks_for(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{row[0]}\n" for row in ASKED), encoding="utf-8")
    assert main(["generate", "--prompts", str(prompts), "--seeds", "1", "--output_dir", str(tmp_path / "out"), "--quiet"]) == 0
    for path, (prompt, *expected) in zip(sorted((tmp_path / "out").glob("*.mp4")), ASKED, strict=True):
        seen = judge(read_video(path)[0].permute(3, 0, 1, 2))
        assert [seen.color, seen.shape, seen.motion, seen.background] == expected, prompt


def test_a_given_picture_is_the_first_frame_and_moves_as_asked(model: Components) -> None:
    scene = sample_scenes(1, 3, split="held_out", second_rate=0, camera_rate=0, pattern_rate=0)
    first = draw(scene, height=256, width=256, frames=17)[0, :, 0]
    video = kinograph.generate(model, kinograph.TextImageToVideo(prompt="it moves to the left", image=first.clamp(-1, 1), seed=0))
    assert psnr(video.frames[None, :, 0], first[None]) > 24
    assert torch.isfinite(video.frames).all()


def test_a_seed_gives_the_same_bytes_and_another_seed_others(model: Components) -> None:
    def frames(seed: int) -> torch.Tensor:
        return kinograph.generate(model, kinograph.TextImageToVideo(prompt="a red ball", num_frames=5, num_steps=2, seed=seed)).frames

    first, again, other = frames(1), frames(1), frames(2)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_clips_continue_from_the_last_frame_without_a_seam(model: Components) -> None:
    request = kinograph.TextImageToVideo(prompt="a blue circle moves to the right on a white background", num_clips=2, num_steps=8, seed=1)
    frames = kinograph.generate(model, request).frames
    assert frames.shape[1] == 17 + 16
    changes = (frames[:, 1:] - frames[:, :-1]).abs().mean(dim=(0, 2, 3))
    join = 16  # between the last frame of the first clip and the first new frame of the second
    assert changes[join] <= 1.5 * changes[:join].max()


def test_the_shared_vae_of_the_two_expert_members_is_trained() -> None:
    file = bundled_folder(kinograph.MODELS[MODEL]).parent / "nano-shared" / "Wan2.1_VAE.pth"
    vae = load_model(lambda: VAE(NANO_VAE_21), [file], device="cpu", dtype=torch.float32)
    scene = sample_scenes(1, 4, split="held_out", second_rate=0, camera_rate=0, pattern_rate=0)
    clip = draw(scene, height=128, width=128, frames=17)
    with torch.inference_mode():
        assert psnr(vae.decode(vae.encode(clip)), clip) > 32


# ---------------------------------------------------------------------------------------- the members with two experts

PAIR = ("t2v-nano", "i2v-nano")
PAIR_LIMIT = 40e6  # bytes that both and what they share may take


def test_the_pair_is_small_enough_and_can_be_used() -> None:
    folders = [bundled_folder(kinograph.MODELS[name]) for name in PAIR]
    folders.append(folders[0].parent / "nano-shared")
    assert sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()) <= PAIR_LIMIT
    assert all(kinograph.MODELS[name].available for name in PAIR)


def test_two_experts_make_what_the_prompt_asks_for(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("".join(f"{row[0]}\n" for row in ASKED), encoding="utf-8")
    command = ["generate", "--task", "t2v-nano", "--prompts", str(prompts), "--seeds", "1", "--output_dir", str(out), "--quiet"]
    assert main(command) == 0
    for path, (prompt, *expected) in zip(sorted(out.glob("*.mp4")), ASKED, strict=True):
        seen = judge(read_video(path)[0].permute(3, 0, 1, 2))
        assert [seen.color, seen.shape, seen.motion, seen.background] == expected, prompt


@pytest.mark.parametrize("has_last", [False, True])
def test_given_pictures_are_the_ends_of_the_video(has_last: bool) -> None:
    scene = sample_scenes(1, 3, split="held_out", second_rate=0, camera_rate=0, pattern_rate=0)
    clip = draw(scene, height=128, width=128, frames=17)[0].clamp(-1, 1)
    last = clip[:, -1] if has_last else None
    request = kinograph.ImageToVideo(prompt=captions(scene, 3, complete=True)[0], image=clip[:, 0], last_image=last, seed=0)
    frames = kinograph.generate(kinograph.load("i2v-nano"), request).frames
    assert psnr(frames[None, :, 0], clip[None, :, 0]) > 24
    if has_last:
        assert psnr(frames[None, :, -1], clip[None, :, -1]) > 22
    seen = judge(frames)
    assert seen.agrees(scene, 0)["motion"] and seen.agrees(scene, 0)["color"]


# ------------------------------------------------------------------------------------------- speech and animation


def test_the_members_that_speak_and_dance_are_small_enough() -> None:
    for name, limit in (("s2v-nano", 14 * 2**20), ("animate-nano", 14e6)):
        assert sum(path.stat().st_size for path in bundled_folder(kinograph.MODELS[name]).rglob("*") if path.is_file()) <= limit


def test_the_mouth_follows_the_sound(tmp_path: Path) -> None:
    """Two clips of a person and of a sound that training never had, through the command."""
    person = talkers.sample_people(1, 4321, palette="natural")
    picture = talkers.draw(person, torch.zeros(1, 1), torch.zeros(1, 1), torch.full((1, 1), 0.5), side=128)[0, :, 0]
    Image.fromarray(kinograph.to_uint8(picture[:, None])[0].numpy()).save(tmp_path / "person.png")
    wave = torch.from_numpy(babble(3.5, np.random.default_rng(99)))
    sound = kinograph.Sound(samples=wave[None].float(), rate=16000)
    request = kinograph.SpeechToVideo(image=str(tmp_path / "person.png"), audio=sound, num_clips=2, num_steps=8, seed=0)
    video = kinograph.generate(kinograph.load("s2v-nano"), request)
    seen = agreement(mouth_opening(video.frames), loudness(wave)[: video.frames.shape[1]])
    assert seen.correlation > 0.7 and abs(seen.lag) < 1.5, seen
    assert max(identity_error(video.frames[:, -16:], picture[:, None]).values()) < 0.05


def test_the_dancer_follows_the_pose(tmp_path: Path) -> None:
    """One clip of a dance that training never had, in replacement mode, through material files."""
    spec = kinograph.MODELS["animate-nano"]
    recipe, times = AnimateRecipe(spec=spec), torch.arange(spec.num_frames)
    material = sample_material(1, 2027, split="held_out", replace_share=1.0)
    write_material(material, tmp_path, times, side=recipe.side, fps=spec.fps)
    request = kinograph.Animate(material=str(tmp_path), mode="replace", num_steps=8, seed=0)
    frames = kinograph.generate(kinograph.load("animate-nano"), request).frames
    side, mask = recipe.side, material.mask(times, side=recipe.side)
    background = (material.background(side=side) * 2 - 1)[0, :, None].expand_as(frames)
    body, colours = material.joints(times, side=side)[0], material.character.colours[0]
    seen = judge_dance(frames, colours, body, background=background, mask=mask[0])
    assert seen.joint_error < 0.06 and seen.joints_missing < 0.1 and seen.colour_error < 0.06, seen
    assert seen.background_db is not None and seen.background_db > 28, seen


def test_the_relighting_lora_lights_the_character_as_the_scene(tmp_path: Path) -> None:
    """One clip on a scene of coloured light, with and without, through the command."""
    spec = kinograph.MODELS["animate-nano"]
    recipe, times = AnimateRecipe(spec=spec), torch.arange(spec.num_frames)
    many = sample_material(16, 2028, split="held_out", replace_share=1.0)
    row = int(many.stage.light.amin(dim=1).argmin())  # the most coloured
    material = many[row : row + 1]
    write_material(material, tmp_path / "material", times, side=recipe.side, fps=spec.fps)
    shares = []
    for name, flags in (("plain", []), ("lit", ["--use_relighting_lora"])):
        file = tmp_path / f"{name}.mp4"
        command = ["--task", spec.name, "--src_root_path", str(tmp_path / "material"), "--refert_num", "1", "--replace_flag"]
        assert main(["generate", *command, "--sample_steps", "8", "--seed", "0", "--save_file", str(file), *flags]) == 0
        video = read_video(file)[0].permute(3, 0, 1, 2).float() / 127.5 - 1
        shares += light_shares(video[None], material, recipe, times)
    plain, lit = shares
    assert lit - plain > 0.4, shares
