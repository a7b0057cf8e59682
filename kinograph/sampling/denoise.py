"""The denoising loop. There is one, for every task: what differs between tasks arrives as `Conditioning`."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from kinograph.sampling.conditioning import Conditioning, Pinned
from kinograph.sampling.guidance import BothPasses, Model, guided_velocity, in_turn
from kinograph.sampling.schedule import NUM_TRAIN_TIMESTEPS
from kinograph.sampling.solvers import Solver

__all__ = ["Conditioning", "ExpertRun", "Pinned", "StepEvent", "by_expert", "denoise", "initial_noise"]


@dataclass(frozen=True, kw_only=True)
class ExpertRun:
    """An expert as the loop sees it: the noise levels it is responsible for, and how to have it at hand."""

    name: str
    t_min: float  # responsible for timesteps >= t_min * 1000 that no expert before it takes
    guidance_scale: float
    on_device: Callable[[], AbstractContextManager[Model]]  # holds the model on its device for as long as it is needed


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """One finished step, as `on_step` is told of it.

    The callback may raise `kinograph.errors.Cancelled` to stop the run; the expert is released on the way out.
    """

    index: int  # from 0
    total: int
    sigma: float  # level that the step started from
    expert: str
    latents: Tensor  # after the step
    velocity: Tensor  # guided; float32
    previous: Tensor  # latents before the step
    seconds: float  # by the host's clock; a GPU may still be at work on the step

    @property
    def clean(self) -> Tensor:
        """The finished latents as this step predicts them: for previews. Computed when asked for."""
        return self.previous.sub(self.velocity, alpha=self.sigma)


def initial_noise(
    shape: Sequence[int], seed: int, *, drawn_on: torch.device | str = "cpu", device: torch.device | str | None = None
) -> Tensor:
    """Standard normal float32 latents of `shape`, a pure function of `seed` and of the kind of device they are drawn on.

    Drawn on the CPU, the noise is the same on every machine; "cuda" draws it as the published code does, whose numbers for
    a seed are others. The result lies on `device`, or where it was drawn.
    """
    generator = torch.Generator(drawn_on).manual_seed(seed)
    noise = torch.randn(tuple(shape), generator=generator, device=drawn_on, dtype=torch.float32)
    return noise if device is None else noise.to(device)


def by_expert(timesteps: Sequence[int], experts: Sequence[ExpertRun]) -> Iterator[tuple[ExpertRun, list[int]]]:
    """Each expert that is needed, in order, with the indices of the consecutive steps it is responsible for.

    `experts` run from high to low noise, and the last is responsible down to 0.
    """

    def responsible(i: int) -> int:
        return next(k for k, expert in enumerate(experts) if timesteps[i] >= expert.t_min * NUM_TRAIN_TIMESTEPS)

    for k, steps in groupby(range(len(timesteps)), key=responsible):
        yield experts[k], list(steps)


@torch.no_grad()
def denoise(
    experts: Sequence[ExpertRun],
    solver: Solver,
    x: Tensor,
    conditioning: Conditioning,
    on_step: Callable[[StepEvent], None] | None = None,
    *,
    passes: BothPasses = in_turn,
) -> Tensor:
    """Latents [B, C, T, H, W] at sigma 0, from the noise `x` at `solver.sigmas[0]`; float32, on the device of `x`.

    The solver keeps its history across a change of expert. Nothing here is random, and nothing waits for the device,
    except what `on_device` and `on_step` do.
    """
    pinned = conditioning.pinned
    timesteps = solver.timesteps.tolist()
    x = x.float() if pinned is None else pinned.write(x.float())
    for expert, steps in by_expert(timesteps, experts):
        with expert.on_device() as model:
            for i in steps:
                started = time.perf_counter()
                t = torch.full((x.shape[0],), timesteps[i], dtype=torch.float32, device=x.device)
                if pinned is not None:
                    t = pinned.timesteps(t)
                velocity = guided_velocity(model, x, t, conditioning, expert.guidance_scale, passes=passes)
                previous, x = x, solver.step(i, x, velocity)
                if pinned is not None:
                    x = pinned.write(x)
                if on_step is not None:
                    on_step(
                        StepEvent(
                            index=i,
                            total=len(timesteps),
                            sigma=solver.levels[i],
                            expert=expert.name,
                            latents=x,
                            velocity=velocity,
                            previous=previous,
                            seconds=time.perf_counter() - started,
                        )
                    )
    return x
