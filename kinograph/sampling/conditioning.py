"""What the denoising loop is conditioned on: two records of model inputs, and latents that are known already."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """Latents that are given, not generated: the first frame of a clip that starts with a picture.

    They hold their place during the whole run, and the model is told timestep 0 there: clean.
    """

    latents: Tensor  # [B, C, T, H, W], or broadcasting to it: a single frame serves them all
    mask: Tensor  # 1 where known, 0 elsewhere: [B or 1, 1, T, 1, 1] for whole frames, else [B or 1, 1, T, H, W]
    token_stride: tuple[int, int] = (2, 2)  # latent rows and columns of one token; the token takes its first latent's timestep

    def write(self, x: Tensor) -> Tensor:
        """`x` with the known latents in their place."""
        return torch.where(self.mask.bool(), self.latents.to(x.dtype), x)

    def timesteps(self, t: Tensor) -> Tensor:
        """`t` [B] with 0 where the latents are known: [B, T] for a mask of whole frames, else [B, tokens]."""
        rows, columns = self.token_stride
        unknown = 1 - self.mask[:, 0, :, ::rows, ::columns].to(t.dtype)
        return t[:, None] * unknown.flatten(1)


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Everything a task gives to the loop.

    `positive` and `negative` are records (dataclasses) whose fields are the model's keyword arguments after `x` and
    `t`, on the model's device. `negative` may be None where the guidance scale is 1 throughout.
    """

    positive: Any
    negative: Any = None
    pinned: Pinned | None = None
