"""A recipe goes into every kind of file and comes back the same."""
from __future__ import annotations

import hashlib
import json
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from kinograph.errors import MediaError
from kinograph.media import Sound, write_video
from kinograph.recipe import Recipe, describe, describe_request, read_recipe
from kinograph.requests import ImageToVideo, SpeechToVideo, TextImageToVideo, TextToVideo

PROMPT = '一只猫 🐱 says: "hello"; it\'s \\n\n\tfine = # é' * 20


@dataclass(frozen=True)
class Plan:
    seed: int
    guidance: dict[str, float]
    latent_shape: tuple[int, ...]


PLAN = Plan(seed=1234567890123456789, guidance={"high_noise": 4.0, "low_noise": 3.0}, latent_shape=(16, 5, 8, 12))


def recipe(request=None) -> Recipe:
    return Recipe.now(
        model="t2v-A14B",
        request=describe_request(request or TextToVideo(prompt=PROMPT, guidance_scale={"high_noise": 4.0, "low_noise": 3.0})),
        plan=PLAN,
        runtime={"device": torch.device("cpu"), "dtype": torch.bfloat16, "attention": "math"},
        weights={"vae": "0123abcd"},
    )


def test_json_round_trip():
    original = recipe()
    text = original.to_json()
    assert Recipe.from_json(text) == original and Recipe.from_json(text).to_json() == text
    assert "一只猫 🐱" in text and "\n" not in text
    assert original.plan == {"seed": 1234567890123456789, "guidance": PLAN.guidance, "latent_shape": [16, 5, 8, 12]}
    assert original.runtime == {"device": "cpu", "dtype": "bfloat16", "attention": "math"}
    assert original.libraries["torch"] == torch.__version__ and original.created.endswith("+00:00")
    with pytest.raises(FrozenInstanceError):
        original.model = "other"


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".gif", ".png", ""])
def test_file_round_trip(tmp_path, suffix):
    original = recipe()
    path = write_video(tmp_path / f"a{suffix}", torch.zeros(1, 16, 16, 3, dtype=torch.uint8), 16, metadata=original.to_json())
    assert read_recipe(path) == original
    assert read_recipe(path).request["prompt"] == PROMPT


def test_lone_surrogates_survive(tmp_path):
    prompt = "caf\udce9 \\udce9"  # as Python reads an argument in another encoding
    original = recipe(TextToVideo(prompt=prompt))
    path = write_video(tmp_path / "a.mp4", torch.zeros(1, 16, 16, 3, dtype=torch.uint8), 16, metadata=original.to_json())
    assert read_recipe(path).request["prompt"] == prompt


def test_requests_are_described(tmp_path, monkeypatch):
    picture = tmp_path / "first.png"
    Image.new("RGB", (4, 4), "red").save(picture)
    monkeypatch.chdir(tmp_path)
    text = TextToVideo(prompt="p", negative_prompt="", seed=5, num_frames=9, guidance_scale=2.5)
    assert TextToVideo(**recipe(text).request) == text
    expected = {"path": str(picture), "sha256": hashlib.sha256(picture.read_bytes()).hexdigest()}
    for given in (picture, str(picture), "first.png"):
        assert recipe(TextImageToVideo(prompt="p", image=given)).request["image"] == expected
    described = recipe(ImageToVideo(prompt="p", image=Image.new("RGB", (4, 6)), last_image=torch.zeros(3, 4, 6))).request
    assert described["image"]["size"] == [4, 6] and described["last_image"]["shape"] == [3, 4, 6]
    gone = recipe(ImageToVideo(prompt="p", image="none.png")).request["image"]
    assert gone == {"path": str(tmp_path / "none.png"), "sha256": None}


def test_a_prompt_is_never_taken_for_a_file():
    assert describe({"prompt": "/etc/passwd", "negative_prompt": "x"}) == {"prompt": "/etc/passwd", "negative_prompt": "x"}
    with pytest.raises(TypeError, match="object"):
        describe({"x": object()})


@pytest.mark.parametrize("metadata", [None, "a comment by someone else", '{"json": "but no recipe"}'])
def test_files_without_a_recipe(tmp_path, metadata):
    path: Path = write_video(tmp_path / "a.mp4", torch.zeros(1, 16, 16, 3, dtype=torch.uint8), 16, metadata=metadata)
    with pytest.raises(MediaError, match=r"no recipe in it; the \.mp4, \.mov, \.webm, \.gif and \.png files"):
        read_recipe(path)


def test_damaged_and_newer_recipes():
    with pytest.raises(MediaError, match="not a Kinograph recipe"):
        Recipe.from_json("[1, 2")
    with pytest.raises(MediaError, match="newer Kinograph"):
        Recipe.from_json(json.dumps({"kinograph_recipe": 2, "kinograph": "9.0"}))
    with pytest.raises(MediaError, match="incomplete"):
        Recipe.from_json(json.dumps({"kinograph_recipe": 1, "model": "x"}))
    values = json.loads(recipe().to_json())
    assert Recipe.from_json(json.dumps(values | {"a later field": 1})).model == "t2v-A14B"


def test_sounds_and_pose_videos(tmp_path):
    sound, pose = tmp_path / "talk.wav", tmp_path / "pose.mp4"
    sound.write_bytes(b"sound")
    pose.write_bytes(b"pose")
    found = describe_request(SpeechToVideo(audio=str(sound), pose_video=str(pose), tts_prompt_audio=str(sound)))
    for name, path in (("audio", sound), ("pose_video", pose), ("tts_prompt_audio", sound)):
        assert found[name] == {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    in_memory = [describe_request(SpeechToVideo(audio=Sound(samples=torch.full((2, 8000), level), rate=16000))) for level in (0.1, 0.2)]
    assert in_memory[0]["audio"]["seconds"] == 0.5 and in_memory[0]["audio"]["sha256"] != in_memory[1]["audio"]["sha256"]
