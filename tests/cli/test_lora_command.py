"""`kinograph lora check`, and the text of the `--lora` flags."""
from __future__ import annotations

import json

import pytest
import torch
from lora_files import FAMILIES, TARGETS, low_rank, write

from kinograph.checkpoints.lora_formats import model_shapes
from kinograph.cli import lora as command
from kinograph.cli.lora import lora_for, parse_lora_argument
from kinograph.config import ANIMATE_NANO, T2V_NANO, TI2V_NANO
from kinograph.errors import CheckpointError, RequestError
from kinograph.runtime.lora import LoraFile, Phase


@pytest.mark.parametrize(
    "text, expected",
    [
        ("style.safetensors", LoraFile("style.safetensors")),
        ("style.safetensors:0.8", LoraFile("style.safetensors", 0.8)),
        ("a b/style.safetensors:-1", LoraFile("a b/style.safetensors", -1.0)),
        (r"C:\loras\style.safetensors", LoraFile(r"C:\loras\style.safetensors")),
        (r"C:\loras\style.safetensors:0.5", LoraFile(r"C:\loras\style.safetensors", 0.5)),
        ("s.safetensors:high_noise=1,low_noise=0.6", LoraFile("s.safetensors", {"high_noise": 1.0, "low_noise": 0.6})),
        ("s.safetensors:1@0.25-1", LoraFile("s.safetensors", 1.0, (Phase(start=0.25),))),
        (
            "s.safetensors:1@0-0.5,0.3@0.5-1",
            LoraFile("s.safetensors", 1.0, (Phase(end=0.5), Phase(start=0.5, strength=0.3))),
        ),
    ],
)
def test_lora_arguments(text, expected):
    assert parse_lora_argument(text) == expected


def test_lora_arguments_for_one_expert():
    assert lora_for("high_noise")("a.safetensors:0.5") == LoraFile("a.safetensors", {"high_noise": 0.5})
    assert lora_for("low_noise")("a.safetensors:1@0.5-1") == LoraFile("a.safetensors", {"low_noise": 1.0}, (Phase(start=0.5),))
    with pytest.raises(ValueError, match="one expert already"):
        lora_for("low_noise")("a.safetensors:high_noise=1")


@pytest.mark.parametrize("text", ["a:strong", "a:", "", ":1", "a:1@0.5", "a:1@0.9-0.1", "a:1@0-2", "a:nan", "a:high_noise="])
def test_bad_lora_arguments(text):
    with pytest.raises(ValueError):
        parse_lora_argument(text)


def test_a_path_with_a_colon_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style:2").touch()
    assert parse_lora_argument("style:2") == LoraFile("style:2")


FITTING = ["t2v-nano", "i2v-nano", "s2v-nano", "animate-nano"]  # models with the layers of `style`


@pytest.fixture
def style(tmp_path):
    tensors, _ = low_rank(model_shapes(T2V_NANO), FAMILIES["kohya"], targets=TARGETS[:4])
    return write(tmp_path / "style_low_noise.safetensors", tensors)


def test_check_says_what_a_file_is(style, capsys):
    assert command.run(["check", str(style)]) == 0
    out = capsys.readouterr().out
    for words in ("kohya", " or ".join(FITTING), "low_noise (by its file name)", "rank     4", "alpha    2", "4 weights by low rank"):
        assert words in out


def test_check_as_json(style, capsys):
    assert command.run(["check", str(style), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["models"] == FITTING and report["rank"] == [4] and report["alpha"] == [2.0] and report["fits"]


def test_check_says_what_tells_models_apart(tmp_path, capsys):
    targets = ["blocks.0.self_attn.q", "blocks.0.cross_attn.v_img"]
    path = write(tmp_path / "light.safetensors", low_rank(model_shapes(ANIMATE_NANO), FAMILIES["comfyui"], targets=targets)[0])
    assert command.run(["check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "animate-nano or t2v-nano or i2v-nano or s2v-nano" in out and "2 weights by low rank" in out
    assert "note: 3 keys are for an image input, which of these only animate-nano has" in out


def test_check_against_another_model(style, capsys):
    assert command.run(["check", str(style), "--task", "ti2v-nano"]) == 2
    out = capsys.readouterr().out
    assert "does not fit" in out and f"is a LoRA for {' or '.join(FITTING)}, not for ti2v-nano" in out


def test_check_lists_keys_that_match_nothing(tmp_path, capsys):
    tensors, _ = low_rank(model_shapes(TI2V_NANO), FAMILIES["diffusers"])
    path = write(tmp_path / "a.safetensors", tensors | stray(9))
    assert command.run(["check", str(path), "--task", "ti2v-nano"]) == 2
    out = capsys.readouterr().out
    assert "keys match nothing" in out and "stray.0.diff" in out and "..." in out and "factor 1 is assumed" in out


def stray(count: int) -> dict[str, torch.Tensor]:
    return {f"stray.{i}.diff": torch.zeros(1) for i in range(count)}


def test_check_refuses(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        command.run(["check", str(tmp_path / "absent.safetensors")])
    with pytest.raises(CheckpointError, match="fits no model"):
        command.run(["check", str(write(tmp_path / "a.safetensors", stray(2)))])
    with pytest.raises(RequestError, match="which file"):
        command.run(["check"])
    with pytest.raises(RequestError, match=r"no command 'lora chek' \(did you mean check\?\)"):
        command.run(["chek", "a"])
