"""Few-step recipes: the schedule they give, and what they do to a request and to the experts."""
from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from kinograph.config import MODELS
from kinograph.errors import RequestError
from kinograph.requests import TextToVideo
from kinograph.sampling.denoise import ExpertRun, by_expert
from kinograph.sampling.presets import PRESETS, find_preset, in_phases
from kinograph.sampling.solvers import make_solver

TWO_EXPERTS = [spec for spec in MODELS.values() if len(spec.experts) == 2]


def runs_of(spec, guidance: float = 4.0) -> list[ExpertRun]:
    return [
        ExpertRun(name=expert.name, t_min=expert.t_min, guidance_scale=guidance, on_device=lambda name=expert.name: nullcontext(name))
        for expert in spec.experts
    ]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_schedule_is_that_of_the_distilled_weights(preset):
    solver = make_solver(preset.solver, preset.num_steps, preset.shift)
    distilled = make_solver("euler", sigmas=(1.0, 0.75, 0.5, 0.25), shift=5.0)
    assert type(solver) is type(distilled) and torch.equal(solver.sigmas, distilled.sigmas)
    assert solver.timesteps.tolist() == distilled.timesteps.tolist() == [1000, 937, 833, 625]


@pytest.mark.parametrize("spec", TWO_EXPERTS, ids=lambda spec: spec.name)
def test_two_steps_for_each_expert(spec):
    groups = [(run.name, steps) for run, steps in by_expert([1000, 937, 833, 625], runs_of(spec))]
    assert groups == [("high_noise", [0, 1]), ("low_noise", [2, 3])]


def test_a_preset_fills_what_a_request_leaves_open():
    request = find_preset("4-step").fill(TextToVideo(prompt="a ball", num_steps=6))
    assert (request.num_steps, request.shift, request.solver, request.guidance_scale) == (6, 5.0, "euler", 1.0)
    assert find_preset("4-step-motion").fill(TextToVideo(prompt="a ball")).guidance_scale is None


@pytest.mark.parametrize("spec", TWO_EXPERTS, ids=lambda spec: spec.name)
def test_the_motion_preset_guides_the_first_step_alone(spec):
    timesteps = [1000, 937, 833, 625]
    runs = find_preset("4-step-motion").runs(runs_of(spec, guidance=3.5), timesteps)
    scales = {i: run.guidance_scale for run, steps in by_expert(timesteps, runs) for i in steps}
    assert scales == {0: 3.5, 1: 1.0, 2: 1.0, 3: 1.0}
    assert [run.name for run in runs] == ["high_noise", "high_noise", "low_noise"]
    assert find_preset("4-step").runs(runs_of(spec), timesteps)[0].guidance_scale == 4.0  # the plan has the guidance already


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 40, 300])
def test_each_step_has_its_own_setting(solver, num_steps):
    """Whatever the timesteps are, every step falls to the part that was made for it."""
    timesteps = make_solver(solver, num_steps, 12.0).timesteps.tolist()
    spec = TWO_EXPERTS[0]
    setting = {timestep: float(i % 3) for i, timestep in reversed(list(enumerate(timesteps)))}
    runs = in_phases(
        runs_of(spec),
        timesteps,
        lambda expert, i: setting[timesteps[i]],
        lambda run, value: ExpertRun(name=run.name, t_min=run.t_min, guidance_scale=value, on_device=run.on_device),
    )
    seen = {i: (run.name, run.guidance_scale) for run, steps in by_expert(timesteps, runs) for i in steps}
    expected = {i: (run.name, setting[timesteps[i]]) for run, steps in by_expert(timesteps, runs_of(spec)) for i in steps}
    assert seen == expected and len(list(by_expert(timesteps, runs))) == len(runs)


def test_unknown_preset():
    with pytest.raises(RequestError, match="'3-step' is not known; choose one of 4-step, 4-step-motion"):
        find_preset("3-step")
