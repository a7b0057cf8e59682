"""Noise levels: from sigma 1 (pure noise) to 0 (data), for sampling and for training alike.

Flow matching: x_sigma = (1 - sigma) * data + sigma * noise, the model predicts the velocity noise - data, and is told
the timestep 1000 * sigma. A shift larger than 1 spends more steps, and more training, at high noise.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from kinograph.errors import RequestError

NUM_TRAIN_TIMESTEPS = 1000

# First level before the shift. UniPC's is the float32 value nearest 0.999: it cannot start at 1, where the
# signal-to-noise ratio is zero, and timesteps are truncated, so the last digits matter.
FIRST_LEVEL = {"unipc": 0.9990000128746033, "dpm++": 1.0, "euler": 1.0}

Level = TypeVar("Level", float, Tensor)


class Schedule(NamedTuple):
    """What a run of n steps goes through; both tensors stay on the CPU, where reading them makes no device wait."""

    sigmas: Tensor  # [n + 1] float32, decreasing, ends with 0
    timesteps: Tensor  # [n] int64 in 0..1000, what the model is told at each step


def shifted(u: Level, shift: float) -> Level:
    """Level `u` in [0, 1] moved towards 1: shift * u / (1 + (shift - 1) * u). Shift 1 changes nothing."""
    return shift * u / (1 + (shift - 1) * u)


def sigmas_and_timesteps(solver: str, num_steps: int, shift: float) -> Schedule:
    """The published schedule of `num_steps` for "unipc" or "dpm++".

    "euler" has no published schedule here: its levels are those of flow matching itself, equally spaced from 1 to 0
    before the shift, which are also DPM++'s.
    """
    if num_steps < 1:
        raise RequestError(f"num_steps must be at least 1; got {num_steps}")
    first = FIRST_LEVEL[solver]
    spacing = -first / num_steps
    return explicit_levels([first + i * spacing for i in range(num_steps)], shift)


def explicit_levels(levels: Sequence[float], shift: float) -> Schedule:
    """The schedule through `levels`, given before the shift and without the final 0: (1.0, 0.75, 0.5, 0.25)."""
    if not levels or not all(0 < low < high <= 1 for low, high in zip(levels[1:], levels)) or not 0 < levels[0] <= 1:
        raise RequestError(f"sigmas must decrease strictly within (0, 1], without the final 0; got {list(levels)}")
    if not (math.isfinite(shift) and shift > 0):
        raise RequestError(f"shift must be a positive number; got {shift}")
    sigmas = [shifted(float(level), shift) for level in levels]
    timesteps = [int(NUM_TRAIN_TIMESTEPS * sigma) for sigma in sigmas]  # truncated, and before rounding to float32
    return Schedule(torch.tensor([*sigmas, 0.0], dtype=torch.float32), torch.tensor(timesteps, dtype=torch.int64))


# ------------------------------------------------------------------------------------------------------- training


def sample_t(
    batch: int, *, shift: float, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """A random level for each training sample, [batch] float32 in [0, 1): uniform, then shifted.

    The result is sigma; the timestep to give the model is 1000 * sigma. `generator` lives on `device`.
    """
    return shifted(torch.rand(batch, generator=generator, device=device, dtype=torch.float32), shift)


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """(1 - sigma) * x0 + sigma * noise. `sigma` is [B], or already broadcasts to `x0` (a level per frame, say)."""
    if sigma.ndim == 1:
        sigma = sigma.view(-1, *(1,) * (x0.ndim - 1))
    return x0 + sigma * (noise - x0)
