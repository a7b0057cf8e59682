"""Solvers of the flow: from noise to data in few model calls.

A solver is built for one run and holds that run's history; the loop (`denoise.py`) stays outside. With alpha = 1 - sigma,
lambda = ln(alpha / sigma) and the data prediction m = x - sigma * v, every method here is a weighted sum of the sample and
of past data predictions. The weights depend on the schedule alone, so they are worked out once, as Python floats: a step is
a few passes over the latents and never waits for the device.

    SOLVERS    "unipc"   predictor and corrector of order 2 (the published default)
               "dpm++"   multistep of order 2
               "euler"   order 1, for few-step distilled weights
"""
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from kinograph.errors import RequestError
from kinograph.sampling.schedule import Schedule, explicit_levels, sigmas_and_timesteps


class Solver(ABC):
    """One run through a schedule: `step` is called once for i = 0, 1, ... n-1, in this order."""

    def __init__(self, schedule: Schedule) -> None:
        self.sigmas = schedule.sigmas  # [n + 1] float32
        self.timesteps = schedule.timesteps  # [n] int64
        # Rounded to float32 first: near sigma 1, alpha = 1 - sigma would otherwise differ from the published by 1e-3.
        self.levels: list[float] = schedule.sigmas.tolist()

    @property
    def num_steps(self) -> int:
        return len(self.levels) - 1

    @abstractmethod
    def step(self, i: int, x: Tensor, velocity: Tensor) -> Tensor:
        """The sample at `sigmas[i + 1]`, from the sample `x` at `sigmas[i]` and the model's float32 velocity there."""


class Euler(Solver):
    """x + (sigma' - sigma) * v: the straight line that flow matching is trained on."""

    def step(self, i: int, x: Tensor, velocity: Tensor) -> Tensor:
        return x.add(velocity, alpha=self.levels[i + 1] - self.levels[i])


class DPMSolverPlusPlus2M(Solver):
    """DPM-Solver++ 2M, midpoint, on data predictions (Lu et al. 2022, algorithm 2)."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self._weights = [_two_step_weights(self.levels, i) for i in range(self.num_steps)]
        self._data: list[Tensor] = []  # data predictions, newest first

    def step(self, i: int, x: Tensor, velocity: Tensor) -> Tensor:
        self._data = [_data_prediction(x, velocity, self.levels[i]), *self._data[:1]]
        return _weighted_sum(self._weights[i], x, self._data)


class UniPC(Solver):
    """UniPC-2, B2(h), on data predictions (Zhao et al. 2023): each model call also corrects the sample it was made at.

    The velocity is not computed again after the correction.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        last = self.num_steps - 1
        self._predict = [_two_step_weights(self.levels, i) for i in range(self.num_steps)]
        # Nothing to correct at the first step; and the last ends at its data prediction, whatever the sample was.
        self._correct = [_unipc_corrector(self.levels, i) if 0 < i < last else None for i in range(self.num_steps)]
        self._data: list[Tensor] = []  # data predictions, newest first
        self._corrected: Tensor | None = None  # the sample the last prediction started from

    def step(self, i: int, x: Tensor, velocity: Tensor) -> Tensor:
        self._data = [_data_prediction(x, velocity, self.levels[i]), *self._data[:2]]
        weights = self._correct[i]
        if weights is not None and self._corrected is not None:
            x = _weighted_sum(weights, self._corrected, self._data)
        self._corrected = x
        return _weighted_sum(self._predict[i], x, self._data)


SOLVERS: dict[str, type[Solver]] = {
    "unipc": UniPC,
    "dpm++": DPMSolverPlusPlus2M,
    "euler": Euler,
}


def make_solver(
    name: str, num_steps: int | None = None, shift: float | None = None, *, sigmas: Sequence[float] | None = None
) -> Solver:
    """A fresh solver of `SOLVERS` for one run, over `num_steps` of its own schedule or over explicit `sigmas`.

    `sigmas` are levels before the shift, without the final 0: weights distilled at timesteps 1000, 750, 500, 250 with
    shift 5 take `make_solver("euler", sigmas=(1.0, 0.75, 0.5, 0.25), shift=5.0)`. No shift means shift 1.
    """
    if name not in SOLVERS:
        raise RequestError(f"solver {name!r} is not known; choose one of {', '.join(SOLVERS)}")
    shift = 1.0 if shift is None else shift
    if num_steps is not None and sigmas is None:
        return SOLVERS[name](sigmas_and_timesteps(name, num_steps, shift))
    if sigmas is not None and num_steps is None:
        return SOLVERS[name](explicit_levels(sigmas, shift))
    raise RequestError(f"give either num_steps or sigmas; got num_steps={num_steps}, sigmas={sigmas}")


# -------------------------------------------------------------------------------------------------------- weights


class _Weights(NamedTuple):
    """A new sample is sample * x + the sum of data[k] * (data prediction of k steps ago)."""

    sample: float
    data: tuple[float, ...]


def _data_prediction(x: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    return x.sub(velocity, alpha=sigma)


def _weighted_sum(weights: _Weights, x: Tensor, data: Sequence[Tensor]) -> Tensor:
    """Terms of weight zero are left out; so the last step returns the newest data prediction, exactly."""
    terms = [(w, t) for w, t in zip((weights.sample, *weights.data), (x, *data)) if w != 0]
    (first, tensor), *rest = terms
    total = tensor * first
    for weight, tensor in rest:
        total.add_(tensor, alpha=weight)
    return total


def _lambda(sigma: float) -> float:
    """ln((1 - sigma) / sigma): infinite at both ends, where the weights below take their limits by themselves."""
    if sigma == 0:
        return math.inf
    return -math.inf if sigma == 1 else math.log1p(-sigma) - math.log(sigma)


def _two_step_weights(levels: Sequence[float], i: int) -> _Weights:
    """DPM-Solver++ 2M, which is also what the predictor of UniPC-2 amounts to."""
    here, there = levels[i], levels[i + 1]
    h = _lambda(there) - _lambda(here)
    gain = -(1 - there) * math.expm1(-h)
    # First order at both ends. Also, by itself, at the second step if the first began at sigma 1: r is infinite there.
    first_order = i == 0 or there == 0
    half_over_r = 0.0 if first_order else 0.5 * h / (_lambda(here) - _lambda(levels[i - 1]))
    return _Weights(there / here, (gain * (1 + half_over_r), -gain * half_over_r))


def _unipc_corrector(levels: Sequence[float], i: int) -> _Weights:
    """From the corrected sample of step i-1 to that of step i, with the order that step i-1 predicted with."""
    before, here = levels[i - 1], levels[i]
    h = _lambda(here) - _lambda(before)
    b = math.expm1(-h)
    gain = -(1 - here) * b
    if i == 1:
        return _Weights(here / before, (gain * 0.5, gain * 0.5))
    r = (_lambda(levels[i - 2]) - _lambda(before)) / h
    k1 = -b / h - 1
    k2 = -k1 / h - 0.5
    right = (k1 / b, 2 * k2 / b)  # [[1, 1], [r, 1]] rho = right
    rho1 = (right[1] - right[0]) / (r - 1)
    rho2 = right[0] - rho1
    return _Weights(here / before, (gain * rho2, gain * (1 - rho1 / r - rho2), gain * rho1 / r))
