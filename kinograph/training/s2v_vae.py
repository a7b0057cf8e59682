"""Clips of talkers to fit a VAE to, where the shared one has not seen their colours; and the judge of one on them."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kinograph.models.vae import VAE
from kinograph.training import talkers
from kinograph.training.judge import psnr
from kinograph.training.s2v_recipe import S2VRecipe
from kinograph.training.s2v_sounds import Sound
from kinograph.training.talker_judge import agreement, identity_error, joint_error, mouth_opening
from kinograph.training.talkers import Person, sample_people

UNUSUAL = 1 / 8  # share of clips that are pose videos, and of those that begin after grey


@dataclass
class TalkerClips:
    """`vae_tuning.Clips`: mouths that jump at random; the mouth and the eyes weigh more."""

    people: Person  # on the device
    side: int  # pixels
    batch: int = 4
    frames: int = 33

    @classmethod
    def sampled(cls, recipe: S2VRecipe, *, device: torch.device, batch: int = 4) -> TalkerClips:
        return cls(sample_people(4096, recipe.seed + 9, palette=recipe.palette).to(device), recipe.side, batch)

    def __call__(self) -> tuple[Tensor, Tensor]:
        device = self.people.skin_rgb.device
        person = self.people[torch.randint(len(self.people), (self.batch,), device=device)]
        person = person.gesturing((torch.rand(self.batch, device=device) < 0.5).float())
        times = torch.rand(self.batch, 1, device=device) * 2000 + torch.arange(self.frames, device=device)
        opening = (torch.rand(self.batch, self.frames, device=device) * 1.6 - 0.4).clamp(0, 1)
        width = torch.rand(self.batch, self.frames, device=device)
        video = talkers.draw(person, times, opening, width, side=self.side)
        weight = torch.ones_like(video[:, :1])
        rows, columns = (slice(round(a * self.side), round(b * self.side)) for a, b in ((0.30, 0.62), (0.34, 0.66)))
        weight[..., rows, columns] = 4.0
        kind = torch.rand(self.batch, 1, 1, 1, 1, device=device)
        poses = talkers.draw_pose(person, times, side=self.side)
        begins = torch.arange(self.frames, device=device)[:, None, None] < 1 + 4 * (self.frames // 8)  # within the motion window
        is_pose, is_grey = kind < UNUSUAL, (kind > 1 - UNUSUAL) & begins
        video = torch.where(is_pose, poses, torch.where(is_grey, 0.0, video))
        return video, torch.where(is_pose | is_grey, 1.0, weight)


@torch.no_grad()
def judge_vae(recipe: S2VRecipe, vae: VAE, sounds: Sequence[Sound], *, count: int = 8, frames: int = 49) -> str:
    """One line: what the judge sees in true clips of held-out people, and in what `vae` makes of them."""
    device = vae.conv1.weight.device
    person = sample_people(count, 999, palette=recipe.palette).gesturing(1.0).to(device)
    times = torch.arange(frames, device=device)[None].float()
    sounds = [sounds[i % len(sounds)] for i in range(count)]
    opening, width = (torch.stack(series) for series in zip(*(sound.mouth(0, frames) for sound in sounds)))
    video = talkers.draw(person, times, opening, width, side=recipe.side)
    picture = talkers.draw(person, times[:, :1] + 200, opening[:, :1] * 0, width[:, :1], side=recipe.side)
    decoded = torch.cat([vae.decode(vae.encode(clip, whole=True), whole=True) for clip in video.split(4)])
    places = talkers.joints(person, times.expand(count, -1))
    words = [f"PSNR {psnr(decoded, video).mean():.1f} dB"]
    for name, clips in (("true", video), ("decoded", decoded)):
        seen = [agreement(mouth_opening(clip), opening[i]) for i, clip in enumerate(clips)]
        colours = np.mean([max(identity_error(clip, picture[i]).values()) for i, clip in enumerate(clips)])
        distance = np.mean([joint_error(clip, picture[i], places[i]) for i, clip in enumerate(clips)])
        words.append(
            f"{name}: correlation {np.mean([a.correlation for a in seen]):.3f}, lag {np.mean([a.lag for a in seen]):+.2f}, "
            f"identity {100 * colours:.1f} %, joints {100 * distance:.1f} %"
        )
    return "eval vae: " + "; ".join(words)
