from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kinograph.errors import Cancelled
from kinograph.sampling.denoise import Conditioning, ExpertRun, Pinned, by_expert, denoise, initial_noise
from kinograph.sampling.solvers import make_solver


@dataclass(frozen=True)
class Inputs:
    text: Tensor


class Experts:
    """Two experts whose entries, exits and timesteps are written to `log`."""

    def __init__(self) -> None:
        self.log: list = []
        self.runs = [
            ExpertRun(name=name, t_min=t_min, guidance_scale=scale, on_device=lambda name=name: self.hold(name))
            for name, t_min, scale in (("high_noise", 0.875, 4.0), ("low_noise", 0.0, 1.0))
        ]

    @contextmanager
    def hold(self, name):
        self.log.append(f"+{name}")
        try:
            yield lambda x, t, text: self.velocity(x, t, text)
        finally:
            self.log.append(f"-{name}")

    def velocity(self, x, t, text):
        self.log.append(t.tolist())
        return 0.5 * x + text.mean()


def conditioning(**options):
    return Conditioning(positive=Inputs(torch.ones(1, 3, 4)), negative=Inputs(torch.zeros(1, 3, 4)), **options)


def test_steps_go_to_the_first_expert_responsible():
    experts = Experts().runs
    groups = [(expert.name, steps) for expert, steps in by_expert([999, 875, 874, 0], experts)]
    assert groups == [("high_noise", [0, 1]), ("low_noise", [2, 3])]
    assert [expert.name for expert, _ in by_expert([500], experts)] == ["low_noise"]


def test_each_expert_is_held_once_and_asked_as_often_as_its_scale_needs():
    experts, solver = Experts(), make_solver("unipc", 4, 5.0)
    denoise(experts.runs, solver, initial_noise((1, 2, 1, 2, 2), 0), conditioning())
    t = [[float(v)] for v in solver.timesteps]
    assert experts.log == ["+high_noise", t[0], t[0], t[1], t[1], "-high_noise", "+low_noise", t[2], t[3], "-low_noise"]


def test_events_tell_the_whole_run():
    events = []
    solver = make_solver("euler", 4, 5.0)
    result = denoise(Experts().runs, solver, initial_noise((1, 2, 1, 2, 2), 0), conditioning(), events.append)
    assert [event.index for event in events] == [0, 1, 2, 3] and {event.total for event in events} == {4}
    assert [event.sigma for event in events] == solver.sigmas[:-1].tolist()
    assert torch.equal(events[-1].latents, result)
    torch.testing.assert_close(events[-1].clean, result)  # at the last step the prediction is the result


def test_same_seed_same_latents():
    def run():
        return denoise(Experts().runs, make_solver("dpm++", 5, 12.0), initial_noise((2, 2, 1, 2, 2), 3), conditioning())

    assert torch.equal(run(), run())


def test_pinned_frames_hold_their_place():
    experts, seen = Experts(), []
    mask = torch.zeros(1, 1, 3, 1, 1)
    mask[:, :, 0] = 1
    pinned = Pinned(latents=torch.full((1, 2, 1, 2, 2), 7.0), mask=mask)
    solver = make_solver("unipc", 3, 5.0)
    denoise(experts.runs, solver, initial_noise((1, 2, 3, 2, 2), 0), conditioning(pinned=pinned), seen.append)
    for event in seen:
        assert (event.previous[:, :, 0] == 7).all() and (event.latents[:, :, 0] == 7).all()
        assert not (event.latents[:, :, 1:] == 7).any()
    asked = [entry for entry in experts.log if isinstance(entry, list)]
    assert all(t == [[0, *t[0][1:]]] and t[0][1] == t[0][2] > 0 for t in asked)


def test_cancelling_releases_the_expert():
    experts = Experts()

    def cancel(event):
        if event.index == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        denoise(experts.runs, make_solver("euler", 8, 5.0), initial_noise((1, 2, 1, 2, 2), 0), conditioning(), cancel)
    assert experts.log[-1] == "-high_noise" and len(experts.log) == 2 + 2 * 2


def test_noise_is_a_function_of_the_seed():
    a = initial_noise((1, 4, 2, 3, 3), 42)
    assert a.dtype == torch.float32 and a.device.type == "cpu"
    assert torch.equal(a, initial_noise((1, 4, 2, 3, 3), 42))
    assert not torch.equal(a, initial_noise((1, 4, 2, 3, 3), 43))
