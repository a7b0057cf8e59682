"""Weights drawn by tensor name, so that a golden result needs no checkpoint beside it.

Every tensor has its own generator, seeded by the name, so neither the order nor the number of tensors matters.
"""
from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import torch


def seeded_tensor(name: str, shape: Sequence[int], seed: int = 0) -> torch.Tensor:
    """The float32 tensor that belongs to `name` under `seed`."""
    generator = torch.Generator("cpu").manual_seed((zlib.crc32(name.encode()) + 1_000_003 * seed) % 2**63)
    noise = torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
    last = name.rsplit(".", 1)[-1]
    if last == "bias":
        return 0.05 * noise
    if "modulation" in name:
        return 0.1 * noise
    if sum(n != 1 for n in shape) <= 1 and last in ("weight", "gamma", "scale"):
        return 1.0 + 0.1 * noise
    return noise / math.sqrt(max(1, math.prod(shape[1:])))


def seeded_state_dict(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: seeded_tensor(name, shape, seed) for name, shape in shapes.items()}


def load_seeded(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """`module` with every tensor of its state dict replaced by the seeded one."""
    module.load_state_dict(seeded_state_dict({k: v.shape for k, v in module.state_dict().items()}, seed), strict=True)
    return module
