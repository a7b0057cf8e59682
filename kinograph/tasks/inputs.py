"""The records that pass between the pipeline and a task's condition builder."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from kinograph.sampling.conditioning import Conditioning


@dataclass(frozen=True)
class TextEmbeddings:
    """Embedded prompts, [1, text_len, text_dim] each, zero rows after the last real token."""

    positive: torch.Tensor
    negative: torch.Tensor


@dataclass(frozen=True)
class Pictures:
    """Pictures a clip is tied to: float32 [3, H, W] in [-1, 1] at the size of the clip."""

    first: torch.Tensor
    last: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Carry:
    """What a clip hands to the next, on the CPU; frames stay floats, so that nothing is lost from clip to clip."""

    frames: torch.Tensor  # float32 [3, n, H, W] in [-1, 1]: the newest n = plan.carry_frames, fewer while the video is shorter
    latents: torch.Tensor | None = None  # [z, m, h, w]: the newest m = plan.carry_latents latent frames; None where that is 0
    anchor: torch.Tensor | None = None  # colours of the first clip (`media.colour.colours`), where later ones are pulled to them


@dataclass(frozen=True, kw_only=True)
class ClipInputs:
    """What one clip is conditioned on, and which of its frames the video gets.

    `conditioning` may be a function instead that makes it on the transformer, for what only that can embed: then the transformer
    is placed once, for the embedding and the steps.

    decoded: [lead | latents without the first `skip_latents`]; of those frames, `drop_frames` are left out at the start, and
    of the rest the first `keep_frames` belong to the video.
    """

    conditioning: Conditioning | Callable[[nn.Module], Conditioning]
    lead: torch.Tensor | None = None  # latents [1, z, n, h, w] that the decoder, which is causal, warms up on
    skip_latents: int = 0
    drop_frames: int = 0
    keep_frames: int | None = None  # None: all
