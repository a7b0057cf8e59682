"""Few-step recipes by name, and runs whose settings change between steps.

    "4-step"          distilled weights: Euler at levels 1, 0.75, 0.5, 0.25 before shift 5 (timesteps 1000, 937, 833, 625),
                      guidance 1; two steps for each expert of the A14B models
    "4-step-motion"   the same, but the first step is the model's own: its guidance, without the few-step LoRA. Distilled
                      weights move little; the first step settles most of the motion

The denoising loop knows one guidance scale for each `ExpertRun` and enters it once. A setting that changes from step to
step is therefore an expert split into several runs (`in_phases`), each with settings of its own: the loop stays as it is,
nothing is decided from a timestep on the device, and no callback has to arrive between two steps.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

from kinograph.errors import RequestError
from kinograph.requests import VideoRequest
from kinograph.sampling.denoise import ExpertRun, by_expert
from kinograph.sampling.guidance import Model
from kinograph.sampling.schedule import NUM_TRAIN_TIMESTEPS

Setting = TypeVar("Setting")
AnyRequest = TypeVar("AnyRequest", bound=VideoRequest)


# ------------------------------------------------------------------------------------------------------- presets


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that few-step weights were distilled for."""

    name: str
    summary: str
    solver: str
    num_steps: int
    shift: float
    guidance_scale: float  # after the first `own_steps`
    own_steps: int = 0  # steps at the start with the model's own guidance and without the few-step LoRA

    def fill(self, request: AnyRequest) -> AnyRequest:
        """`request` with what it leaves open taken from the preset; what was asked for stays.

        With `own_steps` the guidance stays open too: it is that of the first steps, and `runs` sets the others.
        """
        settings: dict[str, Any] = {"solver": self.solver, "num_steps": self.num_steps, "shift": self.shift}
        if not self.own_steps:
            settings["guidance_scale"] = self.guidance_scale
        return replace(request, **{name: value for name, value in settings.items() if getattr(request, name) is None})

    def lora_start(self, num_steps: int) -> float:
        """The share of a run of `num_steps` after which the few-step LoRA is at work."""
        return self.own_steps / num_steps

    def runs(self, experts: Sequence[ExpertRun], timesteps: Sequence[int]) -> list[ExpertRun]:
        """`experts` with the guidance of each step."""
        if not self.own_steps:
            return list(experts)
        return in_phases(
            experts,
            timesteps,
            lambda expert, i: expert.guidance_scale if i < self.own_steps else self.guidance_scale,
            lambda run, scale: replace(run, guidance_scale=scale),
        )


_FOUR_STEP = Preset(
    name="4-step",
    summary="for 4-step distilled weights: Euler, shift 5, guidance 1",
    solver="euler",
    num_steps=4,
    shift=5.0,
    guidance_scale=1.0,
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _FOUR_STEP,
        replace(
            _FOUR_STEP,
            name="4-step-motion",
            summary="4-step, with more motion: the first step has the model's own guidance and no few-step LoRA",
            own_steps=1,
        ),
    )
}


def find_preset(name: str) -> Preset:
    """The preset called `name`."""
    if name not in PRESETS:
        raise RequestError(f"the preset {name!r} is not known; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


# -------------------------------------------------------------------------------------------------------- phases


def in_phases(
    experts: Sequence[ExpertRun],
    timesteps: Sequence[int],
    setting: Callable[[ExpertRun, int], Setting],
    apply: Callable[[ExpertRun, Setting], ExpertRun],
) -> list[ExpertRun]:
    """`experts` split wherever `setting(expert, step index)` changes, each part as `apply(part, its setting)` makes it.

    `timesteps` are those of the run, as the solver has them. The parts of one expert share a single `on_device` block, so an
    expert that is offloaded after use is still loaded once. Steps of equal timestep cannot be told apart and stay with the first.
    """
    first = {timestep: i for i, timestep in reversed(list(enumerate(timesteps)))}
    runs = []
    for expert, steps in by_expert(timesteps, experts):
        settings = [(setting(expert, first[timesteps[i]]), i) for i in steps]
        groups = [(value, [i for _, i in pairs]) for value, pairs in groupby(settings, key=itemgetter(0))]
        shared = _SharedBlock(expert.on_device)
        for number, (value, group) in enumerate(groups):
            last = number == len(groups) - 1
            # Between two whole timesteps, so that no rounding can move the boundary onto one of them.
            t_min = expert.t_min if last else (timesteps[group[-1]] + timesteps[group[-1] + 1]) / (2 * NUM_TRAIN_TIMESTEPS)
            part = replace(expert, t_min=t_min, on_device=shared.last_use if last else shared.use)
            runs.append(apply(part, value))
    return runs


class _SharedBlock:
    """One `with on_device()` over consecutive blocks: entered by the first, left after the last, or by an error in any."""

    def __init__(self, on_device: Callable[[], AbstractContextManager[Model]]) -> None:
        self._on_device = on_device
        self._open: tuple[ExitStack, Model] | None = None

    @contextmanager
    def use(self) -> Iterator[Model]:
        with self._entered() as (stack, model):
            yield model
            self._open = (stack.pop_all(), model)

    @contextmanager
    def last_use(self) -> Iterator[Model]:
        with self._entered() as (_, model):
            yield model

    @contextmanager
    def _entered(self) -> Iterator[tuple[ExitStack, Model]]:
        kept, self._open = self._open, None
        with ExitStack() as stack:
            if kept is None:
                model = stack.enter_context(self._on_device())
            else:
                stack.enter_context(kept[0])
                model = kept[1]
            yield stack, model
