"""Clips of all kinds that the VAE which members share has to decode: Toybox, and dancers in plain and in coloured light.

The VAE was trained on Toybox and knew its colours only: it drew a lit yellow face black. It is the decoder that had to learn.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinograph.config import T2V_NANO
from kinograph.models.vae import VAE
from kinograph.training import dancers, train_vae
from kinograph.training.animate_material import Material, sample_material
from kinograph.training.judge import psnr
from kinograph.training.toybox import Scene, sample_scenes
from kinograph.training.train_vae import OBJECT_MARGIN, VAERecipe

DANCER_WEIGHT = 4.0  # that pixels of a dancer count more than the background


@dataclass
class SharedClips:
    """`vae_tuning.Clips`: half of a batch Toybox, a quarter dancers, a quarter dancers in the light of their scene."""

    recipe: VAERecipe
    scenes: Scene  # on the device
    material: Material  # on the device
    batch: int = 8

    @classmethod
    def sampled(cls, *, device: torch.device, seed: int = 11, batch: int = 8, split: str = "train", count: int = 4096) -> SharedClips:
        recipe = train_vae.RECIPES["2.1"]
        height, width = T2V_NANO.sizes[0][::-1]
        recipe = replace(recipe, size=replace(recipe.size, height=height, width=width))
        scenes = sample_scenes(count, seed, split=split).to(device)
        return cls(recipe, scenes, sample_material(count, seed, split=split).to(device), batch)

    def __call__(self) -> tuple[Tensor, Tensor]:
        quarter = self.batch // 4
        parts = [self.toybox(self._rows(len(self.scenes), self.batch - 2 * quarter))]
        parts += [self.dancers(self._rows(len(self.material), quarter), lit=lit) for lit in (False, True)]
        videos, weights = zip(*parts)
        return torch.cat(videos), torch.cat(weights)

    def _rows(self, count: int, number: int) -> Tensor:
        return torch.randint(count, (number,), device=self.scenes.color.device)

    def toybox(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        scene, size = self.scenes[rows], self.recipe.size
        return size.draw(scene), 1 + self.recipe.object_weight * size.object_mask(scene, margin=OBJECT_MARGIN)

    def dancers(self, rows: Tensor, *, lit: bool) -> tuple[Tensor, Tensor]:
        material, side = self.material[rows], self.recipe.size.height
        times = torch.arange(self.recipe.size.frames, device=self.scenes.color.device)
        mask = dancers.person_mask(material.character, material.joints(times, side=side), side=side, margin=1.0)
        return material.clip(times, side=side, lit=lit), 1 + DANCER_WEIGHT * mask[:, None]


@torch.no_grad()
def judge_shared(vae: VAE, *, count: int = 16) -> str:
    """One line: how well `vae` draws held-out clips of each kind."""
    clips = SharedClips.sampled(device=vae.conv1.weight.device, seed=12, split="held_out", count=count)
    rows = torch.arange(count, device=vae.conv1.weight.device)
    kinds = {"Toybox": clips.toybox(rows), "dancers": clips.dancers(rows, lit=False), "lit dancers": clips.dancers(rows, lit=True)}
    words = []
    for name, (video, _) in kinds.items():
        decoded = torch.cat([vae.decode(vae.encode(part, whole=True), whole=True) for part in video.split(4)])
        quality = psnr(decoded, video)
        words.append(f"{name} {quality.mean():.1f} dB, worst {quality.min():.1f}")
    return "eval vae: " + "; ".join(words)
