"""A LoRA trained with peft (`benchmarks/train_nano_lora.py`: what is blue turns turquoise), used through the command.

The colour of the object in the video is measured at strengths 0, 0.5 and 1.
"""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kinograph.cli.main import main
from kinograph.media import read_video

LORA = Path(__file__).parent.parent / "data" / "turquoise.safetensors"
BLUE, TURQUOISE = torch.tensor([0.13, 0.43, 0.91]), torch.tensor([0.10, 0.78, 0.74])


def object_color(path: Path) -> torch.Tensor:
    """Mean RGB in [0, 1] of the pixels that are clearly not the white background."""
    pixels = read_video(path)[0].float().flatten(0, 2) / 255
    saturation = pixels.amax(dim=1) - pixels.amin(dim=1)
    return pixels[saturation > 0.35].mean(dim=0)


def turned(path: Path) -> float:
    """How far the object's colour went from blue (0) to turquoise (1)."""
    way = TURQUOISE - BLUE
    return float((object_color(path) - BLUE) @ way / way.square().sum())


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> dict[float, float]:
    folder = tmp_path_factory.mktemp("lora")
    measured = {}
    for strength in (0.0, 0.5, 1.0):
        path = folder / f"{strength}.mp4"
        prompt = "a large blue circle moves to the right on a white background"
        assert main(["generate", prompt, "--seed", "1", "--lora", f"{LORA}:{strength}", "-o", str(path), "--quiet"]) == 0
        measured[strength] = turned(path)
    return measured


def test_the_effect_grows_with_the_strength(shares: dict[float, float]) -> None:
    assert abs(shares[0.0]) < 0.1, shares
    assert shares[0.0] + 0.04 < shares[0.5] < shares[1.0] - 0.15, shares
    assert shares[1.0] > 0.3, shares


def test_the_file_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", "check", str(LORA), "--task", "ti2v-nano"]) == 0
    assert "ti2v-nano" in capsys.readouterr().out
