from dataclasses import dataclass

import torch
from torch import Tensor

from kinograph.sampling.conditioning import Conditioning, Pinned
from kinograph.sampling.guidance import batched, guided_velocity, in_turn


@dataclass(frozen=True)
class Inputs:
    text: Tensor
    channels: Tensor | None = None


class Recorder:
    """A model whose velocity is the text, and which counts its passes."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self, x, t, text, channels=None):
        self.passes += 1
        return (x * 0 + text[:, :, None, None, None]).bfloat16() * t.view(-1, 1, 1, 1, 1)


def guided(scale, **options):
    model, x = Recorder(), torch.zeros(1, 2, 1, 2, 2)
    conditioning = Conditioning(positive=Inputs(torch.full((1, 2), 2.0)), negative=Inputs(torch.full((1, 2), 0.5)))
    return guided_velocity(model, x, torch.ones(1), conditioning, scale, **options), model


def test_guidance_moves_away_from_the_negative():
    velocity, model = guided(4)  # an int is as good as a float
    assert velocity.dtype == torch.float32 and model.passes == 2
    assert velocity.unique().tolist() == [0.5 + 4 * 1.5]


def test_scale_one_runs_one_pass():
    velocity, model = guided(1.0)
    assert model.passes == 1 and velocity.dtype == torch.float32
    assert velocity.unique().tolist() == [2.0]


def test_batched_passes_are_one_call_and_the_same():
    velocity, model = guided(4.0, passes=batched)
    assert model.passes == 1
    assert torch.equal(velocity, guided(4.0, passes=in_turn)[0])


def test_pinned_frames_get_timestep_zero():
    mask = torch.zeros(1, 1, 3, 1, 1)
    mask[:, :, 0] = 1
    pinned = Pinned(latents=torch.full((2, 4, 1, 4, 6), 7.0), mask=mask)
    assert pinned.timesteps(torch.tensor([900.0, 500.0])).tolist() == [[0, 900, 900], [0, 500, 500]]
    x = pinned.write(torch.zeros(2, 4, 3, 4, 6))
    assert (x[:, :, 0] == 7).all() and (x[:, :, 1:] == 0).all()


def test_a_mask_over_space_gives_a_timestep_per_token():
    mask = torch.zeros(1, 1, 2, 4, 6)
    mask[:, :, 1, :2, :4] = 1
    pinned = Pinned(latents=torch.zeros(1, 4, 2, 4, 6), mask=mask)
    assert pinned.timesteps(torch.tensor([10.0])).tolist() == [[10] * 6 + [0, 0, 10] + [10] * 3]
