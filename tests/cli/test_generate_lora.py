"""LoRA flags and few-step presets through the command: effect, recipe, replay, refusals."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_files import FAMILIES, TARGETS, low_rank, write

from kinograph import media
from kinograph.checkpoints.lora_formats import model_shapes
from kinograph.cli.main import main
from kinograph.config import TI2V_NANO, ModelSpec
from kinograph.recipe import read_recipe

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def command(tiny_pair: ModelSpec, tiny_pair_folder: Path, in_tmp: Path) -> list[str]:
    """Makes a file whose name is to follow, with two experts at work."""
    weights = ["--task", tiny_pair.name, "--ckpt_dir", str(tiny_pair_folder)]
    return ["generate", "a red ball", *weights, "--seed", "3", "--frame_num", "1", "--sample_steps", "3", "--quiet", "-o"]


@pytest.fixture
def style(tiny_pair: ModelSpec, in_tmp: Path) -> Path:
    tensors, _ = low_rank(model_shapes(tiny_pair), FAMILIES["kohya"], targets=TARGETS[:4])
    return write(in_tmp / "style.safetensors", tensors)


def picture(name: str) -> torch.Tensor:
    return media.image_to_tensor(media.read_image(name))


def test_strength_expert_and_mode(command: list[str], style: Path, capsys: Capture) -> None:
    flags = {
        "none": [],
        "zero": ["--lora", f"{style}:0"],
        "all": ["--lora", str(style)],
        "both": ["--lora_high", str(style), "--lora_low", str(style)],
        "named": ["--lora", f"{style}:high_noise=1,low_noise=1"],
        "high": ["--lora_high", str(style)],
        "low": ["--lora-low", str(style)],
        "late": ["--lora", f"{style}:1@0.5-1"],
    }
    for name, given in flags.items():
        assert main([*command, f"{name}.png", *given]) == 0
    made = {name: picture(f"{name}.png") for name in flags}
    assert torch.equal(made["none"], made["zero"])
    assert torch.equal(made["all"], made["named"])
    assert (made["all"] - made["both"]).abs().max() <= 4 / 255
    distinct = ("none", "all", "high", "low", "late")
    for name in distinct:
        assert not any(torch.equal(made[name], made[other]) for other in distinct if other != name)


def test_recipe_and_replay(command: list[str], style: Path, tiny_pair_folder: Path, capsys: Capture) -> None:
    assert main([*command, "clip.png", "--lora_high", f"{style}:0.5", "--lora", f"{style}:0.7@0.5-1"]) == 0
    first, second = read_recipe("clip.png").loras
    assert (first["strength"], first["phases"]) == ({"high_noise": 1.0, "low_noise": 1.0}, [[0.5, 1.0, 0.7]])
    assert second["strength"] == {"high_noise": 0.5, "low_noise": 0.0} and len(second["fingerprint"]) == 64
    again = ["replay", "clip.png", "--ckpt_dir", str(tiny_pair_folder), "--quiet", "-o"]
    assert main([*again, "again.png"]) == 0
    assert torch.equal(picture("clip.png"), picture("again.png"))
    assert read_recipe("again.png").loras == read_recipe("clip.png").loras
    assert main(["inspect", "clip.png"]) == 0
    assert "style.safetensors (fingerprint " in capsys.readouterr().out

    content = style.read_bytes()
    style.write_bytes(content[:-4] + b"\0\0\0\1")
    assert main([*again, "x.png"]) == 2 and "style.safetensors has changed since" in capsys.readouterr().err
    style.unlink()
    assert main([*again, "x.png"]) == 2 and "style.safetensors is not there" in capsys.readouterr().err
    Path("new.safetensors").write_bytes(content)
    assert main([*again, "x.png", "--lora", "new.safetensors"]) == 0
    assert [Path(lora["path"]).name for lora in read_recipe("x.png").loras] == ["new.safetensors"]


def test_a_lora_of_another_model_is_refused(command: list[str], capsys: Capture) -> None:
    write(Path("other.safetensors"), low_rank(model_shapes(TI2V_NANO), FAMILIES["diffusers"])[0])
    assert main([*command, "x.png", "--lora", "other.safetensors"]) == 2
    assert "other.safetensors" in capsys.readouterr().err and not Path("x.png").exists()
    assert main([*command, "x.png", "--lora", "other.safetensors", "--lora_ignore_unmatched"]) == 2


def test_notes_about_a_lora_are_shown(command: list[str], tiny_pair: ModelSpec, capsys: Capture) -> None:
    write(Path("style_low_noise.safetensors"), low_rank(model_shapes(tiny_pair), FAMILIES["peft"])[0])
    assert main([*command, "x.png", "--lora_high", "style_low_noise.safetensors"]) == 0
    notes = capsys.readouterr().err
    assert "alpha" in notes and "is for low_noise by its file name, but is used for high_noise" in notes


def test_few_step_presets(command: list[str], style: Path, tiny_pair_folder: Path, capsys: Capture) -> None:
    few = style.rename("lightning_4steps.safetensors")
    at = command.index("--sample_steps")
    without_steps = command[:at] + command[at + 2 :]
    for preset in ("4-step", "4-step-motion"):
        assert main([*without_steps, f"{preset}.png", "--preset", preset, "--lora", str(few)]) == 0
        plan = read_recipe(f"{preset}.png").plan
        assert (plan["num_steps"], plan["solver"], plan["shift"], plan["preset"]) == (4, "euler", 5.0, preset)
        assert main(["replay", f"{preset}.png", "--ckpt_dir", str(tiny_pair_folder), "--quiet", "-o", "again.png", "--overwrite"]) == 0
        assert torch.equal(picture(f"{preset}.png"), picture("again.png"))
    assert read_recipe("4-step.png").plan["guidance"] == {"high_noise": 1.0, "low_noise": 1.0}
    motion = read_recipe("4-step-motion.png")
    assert motion.plan["guidance"] == {"high_noise": 4.0, "low_noise": 3.0} and motion.loras[0]["phases"] == [[0.25, 1.0, 1.0]]


def test_a_motion_preset_asks_which_lora(command: list[str], style: Path, capsys: Capture) -> None:
    assert main([*command, "x.png", "--preset", "4-step-motion", "--lora", str(style)]) == 2
    assert "no file name tells which one it is" in capsys.readouterr().err


def test_a_batch_with_a_lora(command: list[str], style: Path, capsys: Capture) -> None:
    many = [*command[: command.index("--seed")], *command[command.index("--frame_num") : -1], "--seeds", "1,2", "--output_dir", "out"]
    assert main([*many, "--lora", str(style)]) == 0
    assert main([*many, "--lora", str(style), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["already_there"] == 2
    assert main([*many, "--lora", f"{style}:0.5"]) == 0  # another strength is another video
    assert len(list(Path("out").glob("*.png"))) == 4
