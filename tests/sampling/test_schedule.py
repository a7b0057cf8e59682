import pytest
import torch
from reference import case, tensors

from kinograph.errors import RequestError
from kinograph.sampling.schedule import add_noise, explicit_levels, sample_t, shifted, sigmas_and_timesteps

PUBLISHED = [(name, run) for name in ("sampler_unipc", "sampler_dpmpp") for run in case(name)["runs"]]


@pytest.mark.parametrize(("name", "run"), PUBLISHED, ids=lambda v: v if isinstance(v, str) else v["key"])
def test_published_schedules_exactly(name, run):
    expected = tensors(name)
    schedule = sigmas_and_timesteps(case(name)["solver"], run["steps"], run["shift"])
    assert torch.equal(schedule.sigmas, expected[f"out.{run['key']}.sigmas"])
    assert torch.equal(schedule.timesteps, expected[f"out.{run['key']}.timesteps"])


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize(("shift", "boundary", "high_noise_steps"), [(12.0, 875, 26), (5.0, 900, 15)])
def test_share_of_the_high_noise_expert(solver, shift, boundary, high_noise_steps):
    assert int((sigmas_and_timesteps(solver, 40, shift).timesteps >= boundary).sum()) == high_noise_steps


def test_few_step_levels_are_shifted():
    schedule = explicit_levels((1.0, 0.75, 0.5, 0.25), 5.0)
    assert schedule.timesteps.tolist() == [1000, 937, 833, 625]
    torch.testing.assert_close(schedule.sigmas, torch.tensor([1.0, 0.9375, 5 / 6, 0.625, 0.0]))


@pytest.mark.parametrize("levels", [(), (0.5, 0.75), (1.0, 1.0), (1.0, 0.0), (1.5, 0.5), (float("nan"),)])
def test_levels_that_do_not_decrease_are_refused(levels):
    with pytest.raises(RequestError, match="decrease"):
        explicit_levels(levels, 1.0)


@pytest.mark.parametrize(("num_steps", "shift"), [(0, 5.0), (4, 0.0), (4, float("inf"))])
def test_impossible_settings_are_refused(num_steps, shift):
    with pytest.raises(RequestError):
        sigmas_and_timesteps("euler", num_steps, shift)


def test_shift_keeps_the_ends_and_inverts():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert shifted(0.0, 5.0) == 0 and shifted(1.0, 5.0) == 1
    torch.testing.assert_close(shifted(shifted(u, 5.0), 1 / 5), u)


def test_training_levels_follow_the_shift():
    sigma = sample_t(20_000, shift=3.0, generator=torch.Generator().manual_seed(0))
    assert sigma.dtype == torch.float32 and sigma.min() >= 0 and sigma.max() < 1
    assert abs(sigma.median().item() - shifted(0.5, 3.0)) < 0.01
    assert torch.equal(sigma, sample_t(20_000, shift=3.0, generator=torch.Generator().manual_seed(0)))


def test_noise_is_added_per_sample_or_per_frame():
    x0, noise = torch.zeros(2, 1, 3, 2, 2), torch.ones(2, 1, 3, 2, 2)
    assert add_noise(x0, noise, torch.tensor([0.25, 1.0])).amax(dim=(1, 2, 3, 4)).tolist() == [0.25, 1.0]
    per_frame = torch.tensor([0.0, 0.5, 0.5]).view(1, 1, 3, 1, 1)
    assert add_noise(x0, noise, per_frame)[0, 0, :, 0, 0].tolist() == [0.0, 0.5, 0.5]
