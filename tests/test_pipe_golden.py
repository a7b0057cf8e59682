"""Whole runs with seeded tiny weights, step by step against the published code: the loop, its experts, models and solvers together."""
from __future__ import annotations

from contextlib import nullcontext
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from reference import assert_close, case, tensors
from seeded import load_seeded
from torch import Tensor

from kinograph.config import I2V_A14B, T2V_A14B, TI2V_5B, ModelSpec, tiny
from kinograph.models.dit import DiT, Inputs
from kinograph.models.vae import VAE
from kinograph.sampling.denoise import Conditioning, ExpertRun, Pinned, denoise, initial_noise
from kinograph.sampling.solvers import Solver, make_solver

SPECS = {"t2v": tiny(T2V_A14B), "i2v": tiny(I2V_A14B), "ti2v": tiny(TI2V_5B)}
CASES = ["pipe_t2v_unipc", "pipe_t2v_dpmpp", "pipe_i2v_unipc", "pipe_ti2v_image", "pipe_ti2v_text"]
GOLDEN_NAME = {"high_noise": "high", "low_noise": "low", "all_noise": "model"}


class Run:
    """One golden case run through `denoise`, with everything the reference stores of it."""

    def __init__(self, name: str) -> None:
        self.golden, self.stored = case(name), tensors(name)
        self.spec: ModelSpec = SPECS[self.golden["task"]]
        arguments, seeds = self.golden["arguments"], self.golden["weights"]["seeds"]
        self.vae = load_seeded(VAE(self.spec.vae), seeds["vae"])
        self.solver = make_solver(self.golden["solver"], arguments["sampling_steps"], arguments["shift"])
        self.noise = initial_noise((1, *self.stored["out.noise"].shape), self.golden["noise_seed"])
        self.conditioning = self._conditioning()
        self.samples = recorded_samples(self.solver)
        self.model_timesteps: list[Tensor] = []
        self.events: list = []
        experts = [self._expert(i, seeds) for i in range(len(self.spec.experts))]
        self.latents = denoise(experts, self.solver, self.noise, self.conditioning, self.events.append)

    def _expert(self, i: int, seeds: dict[str, int]) -> ExpertRun:
        expert, scales = self.spec.experts[i], self.golden["arguments"]["guide_scale"]
        dit = load_seeded(DiT(self.spec.dit), seeds[GOLDEN_NAME[expert.name]])
        dit.register_forward_pre_hook(lambda module, args: self.model_timesteps.append(args[1]))
        scale = scales if isinstance(scales, float) else {"low_noise": scales[0], "high_noise": scales[1]}[expert.name]
        return ExpertRun(name=expert.name, t_min=expert.t_min, guidance_scale=scale, on_device=lambda: nullcontext(dit))

    @torch.no_grad()
    def _conditioning(self) -> Conditioning:
        channels, pinned = None, None
        if self.golden["task"] == "i2v":
            channels = self._image_channels()
        elif "out.image_pixels" in self.stored:
            mask = torch.zeros(1, 1, self.noise.shape[2], 1, 1)
            mask[:, :, 0] = 1
            pinned = Pinned(latents=self.vae.encode(self.stored["out.image_pixels"][None]), mask=mask)
        texts = (self._padded(self.stored[key]) for key in ("in.context", "in.context_null"))
        positive, negative = (Inputs(text=text, channels=channels) for text in texts)
        return Conditioning(positive=positive, negative=negative, pinned=pinned)

    def _image_channels(self) -> Tensor:
        pixels = self.stored["out.image_pixels"][None]
        latent = self.vae.encode(F.pad(pixels, (0, 0, 0, 0, 0, self.golden["arguments"]["frame_num"] - 1)))
        mask = torch.zeros(1, 4, *latent.shape[2:])
        mask[:, :, 0] = 1
        return torch.cat((mask, latent), dim=1)

    def _padded(self, text: Tensor) -> Tensor:
        return F.pad(text, (0, 0, 0, self.spec.dit.text_len - len(text)))[None]

    def assert_close(self, actual: Tensor, key: str) -> None:
        assert_close(actual, self.stored[key], self.golden["tolerance"], key)


def recorded_samples(solver: Solver) -> list[Tensor]:
    """A list that will hold what each `solver.step` returns, before anything is pinned."""
    samples, step = [], solver.step

    def recording(i: int, x: Tensor, velocity: Tensor) -> Tensor:
        samples.append(step(i, x, velocity))
        return samples[-1]

    solver.step = recording
    return samples


@cache
def run_of(name: str) -> Run:
    return Run(name)


@pytest.fixture(params=CASES)
def run(request) -> Run:
    return run_of(request.param)


def test_start(run):
    assert torch.equal(run.noise[0], run.stored["out.noise"])
    assert torch.equal(run.solver.sigmas, run.stored["out.sigmas"])
    assert torch.equal(run.solver.timesteps, run.stored["out.timesteps"])
    if "out.start" in run.stored:
        run.assert_close(run.events[0].previous[0], "out.start")


def test_image_conditioning(run):
    if "out.y" in run.stored:
        run.assert_close(run.conditioning.positive.channels[0], "out.y")
    if "out.image_latent" in run.stored:
        run.assert_close(run.conditioning.pinned.latents[0], "out.image_latent")


def test_every_step(run):
    run.assert_close(torch.cat([event.velocity for event in run.events]), "out.model_output")
    run.assert_close(torch.cat(run.samples), "out.latents")
    run.assert_close(run.latents[0], "out.final")


def test_experts_and_model_timesteps(run):
    if "experts" in run.golden:
        assert [GOLDEN_NAME[event.expert] for event in run.events] == run.golden["experts"]
    assert len(run.model_timesteps) == 2 * len(run.events)
    if "out.token_timesteps" in run.stored:
        expected = run.stored["out.token_timesteps"]
        for pair, row in zip(zip(run.model_timesteps[::2], run.model_timesteps[1::2]), expected):
            for t in pair:  # one per sample or per latent frame, serving equal shares of the tokens
                rows = t.view(-1)
                assert torch.equal(rows.repeat_interleave(len(row) // len(rows)), row)


def test_decoded_video(run):
    with torch.no_grad():
        video = run.vae.decode(run.latents)[0]
    assert list(video.shape) == run.golden["video_shape"]
    if "out.video" in run.stored:
        run.assert_close(video, "out.video")
