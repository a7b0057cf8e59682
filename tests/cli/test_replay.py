"""`kinograph inspect` and `kinograph replay`: what is in a file, and the file again."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from kinograph import media
from kinograph.cli.main import main
from kinograph.config import ModelSpec
from kinograph.recipe import Recipe, read_recipe

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def weights(tiny_spec: ModelSpec, tiny_folder: Path, in_tmp: Path) -> list[str]:
    return ["--ckpt_dir", str(tiny_folder), "--quiet"]


@pytest.fixture
def clip(weights: list[str], tiny_spec: ModelSpec, capsys: Capture) -> Path:
    """A clip made from a picture."""
    Image.linear_gradient("L").convert("RGB").resize((96, 64)).save("first.png")
    argv = ["generate", "a red ball", "--task", tiny_spec.name, "--image", "first.png", "--sample_steps", "2", "-o", "clip.mp4"]
    assert main([*argv, *weights]) == 0
    capsys.readouterr()
    return Path("clip.mp4")


def remade(path: Path, change: dict) -> Path:
    """The clip at `path` with another recipe in it."""
    recipe = read_recipe(path)
    frames, fps = media.read_video(path)
    return media.write_video("changed.mp4", frames, fps, metadata=replace(recipe, **change).to_json())


def test_replay_makes_the_same_frames(clip: Path, weights: list[str], capsys: Capture) -> None:
    assert main(["replay", str(clip), "-o", "again.mp4", *weights]) == 0
    assert "may differ" not in capsys.readouterr().err
    first, again = (media.read_video(path)[0].float() for path in (clip, "again.mp4"))
    # Not equal: x264 (its mbtree) makes one of several files of the same frames. Other frames differ by tens of levels.
    assert first.shape == again.shape and (first - again).abs().mean() < 5


def test_flags_replace_the_recipe(clip: Path, weights: list[str], capsys: Capture) -> None:
    assert main(["replay", str(clip), "-o", "again.mp4", "--prompt", "a box", "--sample_steps", "1", *weights]) == 0
    plan, request = read_recipe("again.mp4").plan, read_recipe("again.mp4").request
    assert (plan["num_steps"], request["prompt"], plan["seed"]) == (1, "a box", read_recipe(clip).plan["seed"])


def test_what_differs_is_said(clip: Path, weights: list[str], capsys: Capture) -> None:
    recipe = read_recipe(clip)
    changed = remade(clip, {"kinograph": "0.0.1", "weights": {**recipe.weights, "vae": "0" * 64}})
    assert main(["replay", str(changed), "-o", "again.mp4", *weights]) == 0
    notices = capsys.readouterr().err
    assert "kinograph was 0.0.1 and is" in notices and "the weights of vae are not those that made the file" in notices


def test_pictures_must_be_there_and_unchanged(clip: Path, weights: list[str], capsys: Capture) -> None:
    Image.new("RGB", (96, 64)).save("first.png")
    assert main(["replay", str(clip), *weights]) == 2
    assert "first.png has changed since" in capsys.readouterr().err
    Path("first.png").unlink()
    assert main(["replay", str(clip), *weights]) == 2
    assert "first.png is not there; put it back, or give another with --image FILE" in capsys.readouterr().err


def test_recipes_of_newer_versions_are_refused(clip: Path, weights: list[str], capsys: Capture) -> None:
    changed = remade(clip, {"request": {**read_recipe(clip).request, "camera": "dolly"}})
    assert main(["replay", str(changed), *weights]) == 2
    assert "the recipe asks for 'camera', which this version does not have" in capsys.readouterr().err


def test_inspect_for_people(clip: Path, capsys: Capture) -> None:
    assert main(["inspect", str(clip)]) == 0
    out = capsys.readouterr().out
    assert "a red ball" in out and "first.png (sha256 " in out and "num_steps" in out


def test_inspect_for_machines(clip: Path, capsys: Capture) -> None:
    assert main(["inspect", str(clip), "--json"]) == 0
    out = capsys.readouterr().out
    assert Recipe.from_json(out) == read_recipe(clip)
    assert json.loads(out)["model"] == "tiny-ti2v-5B"


@pytest.mark.parametrize("command", ["inspect", "replay"])
def test_files_without_a_recipe(command: str, in_tmp: Path, capsys: Capture) -> None:
    media.write_video("plain.mp4", torch.zeros(2, 32, 32, 3, dtype=torch.uint8), 8)
    assert main([command, "plain.mp4"]) == 2
    assert "plain.mp4 has no recipe in it" in capsys.readouterr().err
    assert main([command, "nothing.mp4"]) == 2
    assert "there is no video nothing.mp4" in capsys.readouterr().err
    assert main([command]) == 2
    assert f"kinograph {command} ball.mp4" in capsys.readouterr().err
