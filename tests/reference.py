"""Access to the stored reference results under `tests/golden/` and the tensor lists under `tests/manifests/`."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent


def case(name: str) -> dict[str, Any]:
    """The description of a golden case."""
    return json.loads((ROOT / "golden" / name / "case.json").read_text())


def tensors(name: str, file: str = "tensors.safetensors") -> dict[str, torch.Tensor]:
    """The stored tensors of a golden case."""
    return load_file(ROOT / "golden" / name / file)


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a published checkpoint."""
    return {key: tuple(shape) for key, (_, shape) in json.loads((ROOT / "manifests" / f"{name}.json").read_text()).items()}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: dict[str, float], what: str = "") -> None:
    """|actual - expected| <= atol + rtol * |expected|, with the largest excess in the message."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual, expected = actual.double(), expected.double()
    error = (actual - expected).abs()
    excess = (error - tolerance["atol"] - tolerance["rtol"] * expected.abs()).max().item()
    assert torch.isfinite(actual).all() and excess <= 0, f"{what}: max error {error.max().item():.3e}, over tolerance by {excess:.3e}"
