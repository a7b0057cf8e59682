import math

import pytest
import torch
from reference import assert_close, case, tensors

from kinograph.errors import RequestError
from kinograph.sampling.solvers import SOLVERS, make_solver

PUBLISHED = [(name, run) for name in ("sampler_unipc", "sampler_dpmpp") for run in case(name)["runs"]]


def stored_steps(description: str, num_steps: int) -> list[int]:
    """Indices of the steps a golden case keeps, from its words: "sample after steps 1, 2, 3" or "after every step"."""
    _, listed, numbers = description.partition("sample after steps ")
    return [int(n) - 1 for n in numbers.split(",")] if listed else list(range(num_steps))


def trajectory(solver, x, velocities):
    samples = []
    for i in range(solver.num_steps):
        x = solver.step(i, x, velocities[i])
        samples.append(x)
    return torch.stack(samples)


@pytest.mark.parametrize(("name", "run"), PUBLISHED, ids=lambda v: v if isinstance(v, str) else v["key"])
def test_published_trajectories(name, run):
    golden, stored = case(name), tensors(name)
    key = f"out.{run['key']}.samples"
    solver = make_solver(golden["solver"], run["steps"], run["shift"])
    samples = trajectory(solver, stored["in.noise"], stored["in.model_outputs"])
    kept = stored_steps(golden["tensors"][key]["is"], run["steps"])
    assert_close(samples[kept], stored[key], golden["tolerance"], key)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_last_step_is_the_data_prediction(name):
    for num_steps in (1, 2, 5):
        solver = make_solver(name, num_steps, 5.0)
        x, v = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 4)
        for i in range(num_steps):
            before, x = x, solver.step(i, x, v)
        torch.testing.assert_close(x, before - solver.sigmas[-2] * v)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_straight_flow_is_solved_exactly(name):
    """All data at one point: the velocity is constant along each path, and any number of steps ends at the point."""
    data, noise = torch.full((3,), 0.7), torch.tensor([-1.0, 0.5, 2.0])
    solver = make_solver(name, sigmas=(1.0, 0.75, 0.5, 0.25), shift=5.0)
    samples = trajectory(solver, noise, [noise - data] * 4)
    expected = torch.stack([data + sigma * (noise - data) for sigma in solver.sigmas[1:]])
    torch.testing.assert_close(samples, expected)


def error_on_gaussian_data(name: str, num_steps: int, std: float = 0.5) -> float:
    """Distance to the exact solution where data is normal with deviation `std`, for which the velocity is known."""
    solver = make_solver(name, num_steps, 1.0)
    first = solver.levels[0]
    x = torch.ones(1, dtype=torch.float64)
    for i, sigma in enumerate(solver.levels[:-1]):
        variance = (1 - sigma) ** 2 * std**2 + sigma**2
        x = solver.step(i, x, x * (sigma - (1 - sigma) * std**2) / variance)
    exact = std / math.sqrt((1 - first) ** 2 * std**2 + first**2)
    return abs(x.item() - exact)


@pytest.mark.parametrize("name", SOLVERS)
def test_more_steps_come_closer(name):
    assert error_on_gaussian_data(name, 80) < 0.3 * error_on_gaussian_data(name, 20)


def test_second_order_beats_first():
    for name in ("unipc", "dpm++"):
        assert error_on_gaussian_data(name, 20) < 0.5 * error_on_gaussian_data("euler", 20)


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_many_steps_at_a_large_shift(name):
    """The first timesteps coincide there; steps are counted, never looked up by timestep."""
    solver = make_solver(name, 120, 12.0)
    assert solver.timesteps[0] == solver.timesteps[1] or name == "dpm++"
    assert torch.isfinite(trajectory(solver, torch.ones(3), torch.zeros(120, 3))).all()


def test_two_runs_may_interleave():
    golden = tensors("sampler_unipc")
    x, velocities = golden["in.noise"], golden["in.model_outputs"]
    alone = trajectory(make_solver("unipc", 6, 12.0), x, velocities)
    first, second = make_solver("unipc", 6, 12.0), make_solver("unipc", 6, 12.0)
    a, b = x, -x
    for i in range(6):
        a, b = first.step(i, a, velocities[i]), second.step(i, b, -velocities[i])
    assert torch.equal(a, alone[-1]) and torch.equal(b, -alone[-1])


def test_what_cannot_be_built_is_refused():
    with pytest.raises(RequestError, match=r"'heun' is not known; choose one of unipc, dpm\+\+, euler"):
        make_solver("heun", 4, 5.0)
    with pytest.raises(RequestError, match="either num_steps or sigmas"):
        make_solver("euler", shift=5.0)
