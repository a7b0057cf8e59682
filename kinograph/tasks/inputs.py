"""The records that the pipeline hands to a task's condition builder."""
from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TextEmbeddings:
    """Embedded prompts, [1, text_len, text_dim] each, zero rows after the last real token."""

    positive: torch.Tensor
    negative: torch.Tensor


@dataclass(frozen=True)
class ClipStart:
    """Pictures a clip is tied to: float32 [3, H, W] in [-1, 1] at the size of the clip."""

    first: torch.Tensor
    last: torch.Tensor | None = None
