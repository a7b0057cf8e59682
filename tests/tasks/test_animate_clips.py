"""Conditioning and clips of the animation model: stored masks and lengths, and two clips through the whole loop."""
from __future__ import annotations

from contextlib import nullcontext
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from animate_inputs import config, padded, rand, randn, weights
from reference import assert_close, case, tensors
from torch import Tensor

from kinograph.media.letterbox import letterbox
from kinograph.models.dit_animate import AnimateDiT, Inputs
from kinograph.sampling.denoise import Conditioning, ExpertRun, denoise
from kinograph.sampling.solvers import make_solver
from kinograph.tasks import animate_clips as clips

# --------------------------------------------------------------------------------------------------- stored pieces


def test_clip_lengths():
    for key, expected in case("animate_y_mask")["padded_length"].items():
        assert clips.padded_length(*map(int, key.split(","))) == expected


def test_back_and_forth():
    for key, expected in case("animate_y_mask")["tail_padding"].items():
        assert clips.back_and_forth(*map(int, key.split(","))) == expected
    assert clips.back_and_forth(1, 4) == [0, 0, 0, 0]


@pytest.mark.parametrize("num_frames", [1, 4, 5])
def test_a_video_no_longer_than_the_overlap_gets_a_clip(num_frames):
    assert clips.clip_starts(num_frames, 77, 5) == [0]
    assert clips.padded_length(num_frames, 77, 5) == 77


@pytest.mark.parametrize("num_given", [0, 1, 5])
@pytest.mark.parametrize("mode", ["animate", "replace"])
def test_masks(mode, num_given):
    description, data = case("animate_y_mask"), tensors("animate_y_mask")
    person = data["person_mask"] if mode == "replace" else None
    actual = clips.mask_channels(
        person, num_frames=description["config"]["frames"], size=tuple(description["config"]["latent"][1:]), num_given=num_given
    )
    assert torch.equal(actual, data[f"{mode}_{num_given}"])


def test_letterbox():
    data = tensors("animate_y_mask")
    for source, result in (("padsrc_45x30", "padres_45x30_to_48x64"), ("padsrc_30x50", "padres_30x50_to_64x48")):
        height, width = data[result].shape[:2]
        actual = letterbox(data[source], width, height)
        assert (actual.int() - data[result].int()).abs().max() <= 1


# -------------------------------------------------------------------------------------------------- the whole loop


class StandInVAE:
    """The linear stand-in of the stored runs: means over 8 x 8 pixels and four frames, and matrices between the channels."""

    def __init__(self, seed: int) -> None:
        self.into, self.bias, self.back = randn(seed, 16, 3), 0.1 * randn(seed + 1, 16), 0.06 * randn(seed + 2, 3, 16)

    def encode(self, video: Tensor) -> Tensor:
        cells = F.avg_pool3d(video, (1, 8, 8))
        means = torch.cat([cells[:, :, :1], F.avg_pool3d(cells[:, :, 1:], (4, 1, 1)) if video.shape[2] > 1 else cells[:, :, 1:]], dim=2)
        return torch.einsum("zc,bcthw->bzthw", self.into, means) + self.bias.view(-1, 1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        rgb = torch.einsum("cz,bzthw->bcthw", self.back, latents)
        frames = torch.cat([rgb[:, :, :1], rgb[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)
        return frames.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4).clamp(-1, 1)


class Run:
    """A stored run, repeated from the pieces that a task is made of."""

    def __init__(self, name: str) -> None:
        self.golden, self.stored = case(name), tensors(name)
        self.settings, self.seed = self.golden["generate"], self.golden["vae_seed"]
        self.length, self.overlap = self.settings["clip_len"], self.settings["refert_num"]
        self.vae, self.dit = StandInVAE(self.seed), weights(AnimateDiT(config(self.golden["config"])), self.golden["weight_seed"])
        self._draw_material()
        self.seen: dict[str, Tensor] = {}
        with torch.no_grad():
            self.video = self._generate()

    def _draw_material(self) -> None:
        frames, height, width = self.settings["real_frames"], self.settings["height"], self.settings["width"]

        def video(seed: int, *size: int) -> Tensor:
            return torch.floor(255.999 * rand(seed, frames, *size))

        order = clips.back_and_forth(frames, clips.padded_length(frames, self.length, self.overlap))
        self.pose = as_pixels(video(self.seed + 10, height, width, 3))[:, order]
        faces = as_pixels(video(self.seed + 12, 8, 8, 3))[None].repeat_interleave(64, dim=3).repeat_interleave(64, dim=4)
        with torch.no_grad():
            self.motion = self.dit.motion(faces)[:, order]
        self.background = self.person = None
        if self.settings["replace_flag"]:
            self.background = as_pixels(video(self.seed + 11, height, width, 3))[:, order]
            person = (video(self.seed + 14, height // 4, width // 4) > 127).float()[order]
            self.person = person.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
        self.reference = as_pixels(self.stored["reference"][None])[:, 0]

    def _generate(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.golden["noise_seed"])
        reference = clips.reference_channels(self.vae, self.reference)
        image = self.dit.image_tokens(randn(self.seed + 3, 1, 257, 1280) + self.reference.mean())
        parts: list[Tensor] = []
        for i, start in enumerate(clips.clip_starts(self.settings["real_frames"], self.length, self.overlap)):
            inputs = self._inputs(start, parts[-1][:, -self.overlap :] if parts else None, reference, image)
            noise = torch.randn(1, 16, *inputs.channels.shape[2:], generator=generator)
            latents = self._denoise(noise, inputs)[:, :, 1:]
            self.seen |= {f"clip{i}_noise": noise[0], f"clip{i}_y": inputs.channels[0], f"clip{i}_latent": latents[0]}
            self.seen[f"clip{i}_pose_latents"] = inputs.pose
            parts.append(self.vae.decode(latents)[0])
        joined = torch.cat([parts[0], *(part[:, self.overlap :] for part in parts[1:])], dim=1)
        return joined[:, : self.settings["real_frames"]]

    def _inputs(self, start: int, guidance: Tensor | None, reference: Tensor, image: Tensor) -> Inputs:
        frames, size = slice(start, start + self.length), self.pose.shape[-2:]
        background = None if self.background is None else self.background[:, frames]
        person = None if self.person is None else self.person[frames]
        given = 0 if guidance is None else guidance.shape[1]
        mask = clips.mask_channels(person, num_frames=self.length, size=(size[0] // 8, size[1] // 8), num_given=given)
        pixels = clips.given_pixels(guidance=guidance, background=background, num_frames=self.length, size=size)
        return Inputs(
            text=self._text(4),
            channels=clips.conditioning_channels(self.vae, reference, pixels, mask),
            pose=self.vae.encode(self.pose[None, :, frames]),
            image=image,
            face=self.dit.face_tokens(self.motion[:, frames]),
        )

    def _text(self, offset: int) -> Tensor:
        sizes = self.dit.config
        return padded(randn(self.seed + offset, self.golden["words"], sizes.text_dim), sizes.text_len)

    def _denoise(self, noise: Tensor, inputs: Inputs) -> Tensor:
        scale, faceless = self.settings["guide_scale"], None
        if scale > 1:
            no_face = self.dit.face_tokens(self.dit.no_motion(self.length))
            faceless = Inputs(**vars(inputs) | {"text": self._text(5), "face": no_face})
        expert = ExpertRun(name="all_noise", t_min=0.0, guidance_scale=scale, on_device=lambda: nullcontext(self.dit))
        solver = make_solver(self.settings["sample_solver"], self.settings["sampling_steps"], self.settings["shift"])
        assert solver.timesteps.tolist() == self.golden["observed"]["timesteps"]
        return denoise([expert], solver, noise, Conditioning(positive=inputs, negative=faceless))


def as_pixels(frames: Tensor) -> Tensor:
    """[3, frames, H, W] in [-1, 1] for levels [frames, H, W, 3]."""
    return (frames.float() / 127.5 - 1).permute(3, 0, 1, 2)


@cache
def run_of(name: str) -> Run:
    return Run(name)


@pytest.mark.parametrize("name", ["animate_loop_animation", "animate_loop_replacement"])
def test_two_clips(name):
    run = run_of(name)
    assert len([key for key in run.seen if key.endswith("noise")]) == run.golden["observed"]["clips"]
    for key, expected in run.stored.items():
        if key in run.seen:
            assert_close(run.seen[key], expected, run.golden["tolerance"], f"{name} {key}")
    assert_close(run.video, run.stored["video"], run.golden["tolerance"], name)


def test_folding_repeats_the_first_frame():
    mask = torch.arange(9.0).view(9, 1, 1)
    assert np.array_equal(clips.fold_frames(mask).flatten(1).T, [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]])
