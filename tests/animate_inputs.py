"""Inputs and weights of the golden `animate_*` cases, drawn as their descriptions say."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from seeded import seeded_tensor
from torch import Tensor

from kinograph.config import AnimateConfig
from kinograph.models.dit_animate import AnimateDiT, Inputs


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rand(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def weights(model: torch.nn.Module, seed: int, prefix: str = "") -> torch.nn.Module:
    """`model` with the seeded tensors of the names `prefix` + its own; those of the motion encoder have unit size."""
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith(".kernel"):
            continue
        drawn = seeded_tensor(prefix + name, tensor.shape, seed)
        if (prefix + name).startswith("motion_encoder.") and name.endswith(".weight"):
            drawn *= math.sqrt(math.prod(tensor.shape[1:]))
        state[name] = drawn
    model.load_state_dict(state)
    return model.eval()


def config(description: Mapping[str, Any]) -> AnimateConfig:
    """The sizes of a golden case."""
    sizes = {field.name: description[field.name] for field in fields(AnimateConfig) if field.name in description}
    return AnimateConfig(**sizes | {"patch_size": tuple(description["patch_size"]), "motion_dim": description["motion_encoder_dim"]})


def faces(seed: int, frames: int, size: int = 512) -> Tensor:
    """[1, 3, frames, size, size]."""
    return F.interpolate(rand(seed, frames, 3, 16, 16) * 2 - 1, size=(size, size), mode="bilinear").transpose(0, 1)[None]


def padded(text: Tensor, text_len: int) -> Tensor:
    """[1, text_len, dim] for the rows of a prompt [words, dim]."""
    return F.pad(text, (0, 0, 0, text_len - len(text)))[None]


@torch.no_grad()
def sample(model: AnimateDiT, sizes: Mapping[str, Any], seed: int) -> tuple[Tensor, Tensor, Inputs]:
    """x, t and the rest, of the cases that run the transformer once."""
    frames, rows, columns = sizes["t"], sizes["h"], sizes["w"]
    inputs = Inputs(
        text=padded(randn(seed + 4, sizes["words"], model.config.text_dim), model.config.text_len),
        channels=randn(seed + 2, 20, frames + 1, rows, columns)[None],
        pose=randn(seed + 3, 1, 16, frames, rows, columns),
        image=model.image_tokens(randn(seed + 5, 1, 257, model.config.image_dim)),
        face=model.face_tokens(model.motion(faces(seed + 6, 4 * (frames - 1) + 1))),
    )
    return randn(seed + 1, 16, frames + 1, rows, columns)[None], torch.tensor([sizes["time"]]), inputs
