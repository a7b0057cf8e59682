"""What a clip of the animation model is conditioned on, and how a long video is cut into clips.

Clips overlap: the last frames of one are given to the next. Every clip is preceded by a latent frame of the reference
picture. The conditioning channels are a mask (one channel for each frame that a latent frame stands for: 1 given, 0 to be
generated) and the latents of the given pixels. Pixels are float [3, frames, H, W] in [-1, 1].
"""
from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kinograph.sampling.masks import fold_frames


class Encoder(Protocol):
    """What is needed of a VAE."""

    def encode(self, video: Tensor) -> Tensor:
        """Latents [B, z, T, h, w] of a video [B, 3, frames, H, W]."""


# --------------------------------------------------------------------------------------------------------- clips


def padded_length(num_frames: int, clip_length: int, overlap: int) -> int:
    """Frames that whole clips cover: at least one clip, and no fewer than `num_frames`."""
    step = clip_length - overlap
    return overlap + step * max(1, -(-(num_frames - overlap) // step))


def clip_starts(num_frames: int, clip_length: int, overlap: int) -> list[int]:
    """The first frame of each clip of a video; a clip's first `overlap` frames are the last of the clip before."""
    return list(range(0, padded_length(num_frames, clip_length, overlap) - overlap, clip_length - overlap))


def back_and_forth(num_frames: int, length: int) -> list[int]:
    """Frame numbers 0, 1, .., n-1, n-2, .., 1, 0, 1, ..: a video of `num_frames` extended to `length` without a cut."""
    period = max(2 * (num_frames - 1), 1)
    return [min(i % period, period - i % period) if num_frames > 1 else 0 for i in range(length)]


# -------------------------------------------------------------------------------------------------- conditioning


def mask_channels(person: Tensor | None, *, num_frames: int, size: tuple[int, int], num_given: int, stride: int = 4) -> Tensor:
    """[stride, T, *size]: which pixels of a clip are given.

    `person` [num_frames, H, W] in 0..1, 1 where the character is to be replaced; None to generate everything. The first
    `num_given` frames are given wholly. One pixel of each cell decides for it, as in training.
    """
    given = torch.zeros(num_frames, *size) if person is None else F.interpolate(1 - person[None], size=size, mode="nearest")[0]
    given[:num_given] = 1
    return fold_frames(given, stride=stride)


def given_pixels(*, guidance: Tensor | None, background: Tensor | None, num_frames: int, size: tuple[int, int]) -> Tensor:
    """[3, num_frames, *size]: `guidance`, the last frames of the clip before, then the background or, without one, grey."""
    rest = torch.zeros(3, num_frames, *size) if background is None else background
    if guidance is None:
        return rest
    return torch.cat([guidance.to(rest), rest[:, guidance.shape[1] :]], dim=1)


def reference_channels(vae: Encoder, picture: Tensor, *, stride: int = 4) -> Tensor:
    """[1, stride + z, 1, h, w] for the reference picture [3, H, W], which fills the frame. The same for every clip."""
    latents = vae.encode(picture[None, :, None]).float()
    return torch.cat([torch.ones_like(latents[:, :1]).expand(-1, stride, -1, -1, -1), latents], dim=1)


def conditioning_channels(vae: Encoder, reference: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """[1, stride + z, 1 + T, h, w]: `reference_channels`, then the mask [stride, T, h, w] and latents of a clip's given pixels."""
    latents = vae.encode(pixels[None]).float()
    return torch.cat([reference, torch.cat([mask[None].to(latents), latents], dim=1)], dim=2)
