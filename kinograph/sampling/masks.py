"""Which pixels of a clip are given, as conditioning channels: one for each frame that a latent frame stands for.

Also the training's definition of it.
"""
from __future__ import annotations

import torch
from torch import Tensor


def fold_frames(mask: Tensor, *, stride: int = 4) -> Tensor:
    """[stride, T, ...] for a mask [frames, ...] of 1 + stride·n frames: the first latent frame is the first frame, repeated."""
    repeated = torch.cat([mask[:1].expand(stride, *mask.shape[1:]), mask[1:]])
    return repeated.unflatten(0, (-1, stride)).transpose(0, 1)


def frame_mask(num_frames: int, *, has_last: bool, stride: int) -> Tensor:
    """[stride, T]: 1 where a frame is given, the first and perhaps the last."""
    known = torch.zeros(num_frames)
    known[0] = 1.0
    if has_last:
        known[-1] = 1.0
    return fold_frames(known, stride=stride)
