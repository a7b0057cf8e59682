"""Where the weights of a run come from: parts by flag, the cache of a hub; and what `inspect` says of them."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinograph import media
from kinograph.cli.main import main
from kinograph.config import MODELS, ModelSpec
from kinograph.recipe import read_recipe

Capture = pytest.CaptureFixture[str]
QUICK = ["--frame_num", "1", "--sample_steps", "1", "--quiet"]
SHORT = [*QUICK, "-o", "x.png"]


@pytest.fixture
def files(tiny_pair: ModelSpec, tiny_pair_folder: Path, in_tmp: Path) -> dict[str, Path]:
    """Flag -> the part of the tiny two-expert model that it is for."""
    dit = "diffusion_pytorch_model.safetensors"
    return {
        "high_noise": tiny_pair_folder / "high_noise_model" / dit,
        "low_noise": tiny_pair_folder / "low_noise_model" / dit,
        "vae": next(path for path in tiny_pair_folder.glob("Wan2.1_VAE.*")),
        "text_encoder": next(path for path in tiny_pair_folder.glob("models_t5*")),
        "tokenizer": tiny_pair_folder / tiny_pair.files.tokenizer,
    }


def flags(files: dict[str, Path]) -> list[str]:
    return [word for name, path in files.items() for word in (f"--{name}", str(path))]


def test_parts_alone_are_enough(files: dict[str, Path], tiny_pair: ModelSpec, capsys: Capture) -> None:
    assert main(["generate", "a ball", *flags(files), *SHORT]) == 0  # the model is recognised by its transformer
    assert read_recipe("x.png").model == tiny_pair.name


def test_a_part_replaces_that_of_the_folder(
    files: dict[str, Path], tiny_pair: ModelSpec, tiny_pair_folder: Path, capsys: Capture
) -> None:
    swapped = {"high_noise": files["low_noise"]}
    assert main(["generate", "a ball", "--task", tiny_pair.name, "--ckpt_dir", str(tiny_pair_folder), *flags(swapped), *SHORT]) == 0
    weights = read_recipe("x.png").weights
    assert weights["high_noise"] == weights["low_noise"]


def test_the_wrong_vae_is_said(files: dict[str, Path], tiny_pair: ModelSpec, tiny_folder: Path, capsys: Capture) -> None:
    wrong = {**files, "vae": next(tiny_folder.glob("Wan2.2_VAE.*"))}
    assert main(["generate", "a ball", "--task", tiny_pair.name, *flags(wrong), *SHORT]) == 2
    assert "14B models use Wan2.1_VAE.pth" in capsys.readouterr().err


def test_parts_that_are_missing_are_named(files: dict[str, Path], tiny_pair: ModelSpec, capsys: Capture) -> None:
    del files["vae"]
    assert main(["generate", "a ball", "--task", tiny_pair.name, *flags(files), *SHORT]) == 2
    assert "vae" in capsys.readouterr().err.lower()


def test_what_is_no_transformer_tells_no_model(files: dict[str, Path], capsys: Capture) -> None:
    assert main(["generate", "a ball", "--high_noise", str(files["vae"]), *SHORT]) == 2
    assert " is not a transformer; `kinograph inspect " in capsys.readouterr().err


def test_weights_in_the_cache_of_the_hub_are_found(
    tiny_pair: ModelSpec, tiny_pair_folder: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(in_tmp / "hub"))
    monkeypatch.setitem(MODELS, tiny_pair.name, spec := replace(tiny_pair, hub="owner/tiny"))
    command = ["generate", "a ball", "--task", spec.name, *SHORT]
    assert main(command) == 2
    assert f"fetch owner/tiny with: kinograph download {spec.name}" in capsys.readouterr().err
    shutil.copytree(tiny_pair_folder, in_tmp / "hub" / "models--owner--tiny" / "snapshots" / ("0" * 40))
    assert main(command) == 0


def test_inspect_weights(files: dict[str, Path], tiny_pair: ModelSpec, tiny_pair_folder: Path, capsys: Capture) -> None:
    assert main(["inspect", str(files["high_noise"])]) == 0
    assert f"the high-noise expert of {tiny_pair.name}" in capsys.readouterr().out
    assert main(["inspect", str(tiny_pair_folder)]) == 0
    assert "the 2.1 VAE" in capsys.readouterr().out
    assert main(["inspect", str(tiny_pair_folder), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(row["kind"] for row in rows) == ["text_encoder", "transformer", "transformer", "vae"]
    assert main(["inspect", "nothing.safetensors"]) == 2
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["diffusers", "single"])
def test_converted_weights_make_the_same_picture(
    layout: str, tiny_pair: ModelSpec, tiny_pair_folder: Path, in_tmp: Path, capsys: Capture
) -> None:
    assert main(["convert", str(tiny_pair_folder), "converted", "--to", layout, "--task", tiny_pair.name]) == 0
    command = ["generate", "a ball", "--task", tiny_pair.name, *QUICK, "--seed", "3"]
    assert main([*command, "-o", "a.png", "--ckpt_dir", str(tiny_pair_folder)]) == 0
    assert main([*command, "-o", "b.png", "--ckpt_dir", "converted"]) == 0
    assert torch.equal(picture("a.png"), picture("b.png"))


def picture(name: str) -> torch.Tensor:
    return media.image_to_tensor(media.read_image(name))
