"""Drawn dancers as the animation task takes them: reference picture, control pictures, faces, masks, and the true result."""
from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from kinograph.sampling.masks import fold_frames
from kinograph.training import dancers
from kinograph.training.dancers import Character, Dance, PoseDrawing, Stage

MASK_MARGIN = 5.0  # pixels that a mask is wider than the person


@dataclass(frozen=True, kw_only=True)
class Material:
    """What clips are drawn from; every field has the batch first."""

    character: Character
    driver: Character  # of another build, whom the mask covers
    dance: Dance
    stage: Stage  # of the result
    posing: Dance  # how the character stands in the reference picture
    posing_stage: Stage
    replaces: Tensor  # [B] bool: replacement; else animation, whose stage is the reference picture's
    rectangle: Tensor  # [B] bool: the mask is a rectangle
    coarse: Tensor  # [B] bool: the control pictures have gone through an ordinary video file

    def __len__(self) -> int:
        return len(self.replaces)

    def __getitem__(self, rows: slice | Tensor) -> Material:
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to(self, device: torch.device | str) -> Material:
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def background(self, *, side: int) -> Tensor:
        """[B, 3, side, side] in [0, 1]: of the result."""
        own, other = dancers.draw_stage(self.stage, side=side), dancers.draw_stage(self.posing_stage, side=side)
        return torch.where(self.replaces[:, None, None, None], own, other)

    def joints(self, times: Tensor, *, side: int) -> Tensor:
        return dancers.joints(self.character, self.dance, times, side=side)

    def clip(self, times: Tensor, *, side: int, lit: bool = False) -> Tensor:
        """The true result [B, 3, T, side, side] in [-1, 1]."""
        light = self.stage.light if lit else None
        body, expression = self.joints(times, side=side), dancers.expressions(self.dance, times)
        return dancers.draw_character(self.character, body, expression, self.background(side=side), light=light)

    def reference(self, *, side: int) -> Tensor:
        """[B, 3, side, side] in [-1, 1]."""
        still = torch.zeros(1, device=self.replaces.device)
        body = dancers.joints(self.character, self.posing, still, side=side)
        stage = dancers.draw_stage(self.posing_stage, side=side)
        return dancers.draw_character(self.character, body, dancers.expressions(self.posing, still), stage)[:, :, 0]

    def mask(self, times: Tensor, *, side: int) -> Tensor:
        """[B, T, side, side] of 0 and 1: the driving person, widened."""
        body = self.joints(times, side=side)
        margin = MASK_MARGIN * side / dancers.UNIT
        tight, box = (dancers.person_mask(self.driver, body, side=side, margin=margin, rectangle=r) for r in (False, True))
        return torch.where(self.rectangle[:, None, None, None], box, tight)

    def holed(self, mask: Tensor) -> Tensor:
        """[B, 3, T, side, side] in [-1, 1]: the given background, black under `mask`; grey for animation."""
        background = self.background(side=mask.shape[-1])[:, :, None] * (1 - mask[:, None])
        return (background * 2 - 1) * self.replaces[:, None, None, None, None]

    def poses(self, drawing: PoseDrawing, times: Tensor) -> Tensor:
        """[B, 3, T, side, side] in [-1, 1]: the control pictures."""
        pictures = drawing(self.joints(times, side=drawing.side)).float() / 127.5 - 1
        return torch.where(self.coarse[:, None, None, None, None], dancers.with_coarse_colour(pictures), pictures)

    def faces(self, times: Tensor, *, size: int) -> Tensor:
        return dancers.draw_faces(self.driver.colours[:, dancers.SKIN], dancers.expressions(self.dance, times), size=size)


def sample_material(n: int, seed: int, *, split: str = "train", replace_share: float = 0.5) -> Material:
    """`n` clips on the CPU, the same for the same seed. "held_out" has pairs of movements that "train" never has."""
    generator = torch.Generator().manual_seed(seed)
    return Material(
        character=dancers.sample_characters(n, generator),
        driver=dancers.sample_characters(n, generator),
        dance=dancers.sample_dances(n, generator, split=split),
        stage=dancers.sample_stages(n, generator),
        posing=dancers.sample_dances(n, generator, split=split),
        posing_stage=dancers.sample_stages(n, generator),
        replaces=torch.rand(n, generator=generator) < replace_share,
        rectangle=torch.rand(n, generator=generator) < 0.5,
        coarse=torch.rand(n, generator=generator) < 0.5,
    )


# ------------------------------------------------------------------------------------------------ conditioning channels


def folded_mask(mask: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[B, time stride, T, h, w] for [B, frames, H, W]: as `tasks.animate_clips.mask_channels` folds it, one pixel for each cell."""
    time, rows, columns = stride
    return fold_frames(mask[:, :, ::rows, ::columns].transpose(0, 1), stride=time).movedim(2, 0)


def with_guidance(mask: Tensor, frames: int) -> Tensor:
    """The mask channels [B, 4, T, h, w] with the first `frames` frames given."""
    given = -(-(frames + 3) // 4) if frames else 0
    return torch.cat([torch.ones_like(mask[:, :, :given]), mask[:, :, given:]], dim=2)


def joined_channels(reference: Tensor, mask: Tensor, given: Tensor) -> Tensor:
    """[B, 4 + z, 1 + T, h, w] from latents of the reference picture [B, z, 1, h, w], the clip's mask and given latents."""
    first = torch.cat([torch.ones_like(reference[:, :1]).expand(-1, mask.shape[1], -1, -1, -1), reference], dim=1)
    return torch.cat([first, torch.cat([mask, given], dim=1)], dim=2)
