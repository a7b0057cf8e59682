"""The model in the package, judged by its videos: a small version of `benchmarks/nano_judge.py` with fixed seeds.

What is right is a property of the shipped weights, so a change of sampler, models or files that spoils it is seen here.
"""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kinograph
from kinograph.checkpoints.load import load_model
from kinograph.cli.main import main
from kinograph.config import NANO_VAE_21
from kinograph.media import read_video
from kinograph.models.vae import VAE
from kinograph.runtime.placement import Components, bundled_folder
from kinograph.training.judge import judge, psnr
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
    assert psnr(video.frames[:, 0], first) > 24
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
