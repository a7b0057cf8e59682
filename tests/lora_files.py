"""LoRA files as other programs write them, with seeded tensors; and the difference that each must make, by the formula."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from seeded import seeded_tensor

from kinograph.checkpoints.formats import dit_names

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Family:
    """How one kind of program spells its keys."""

    spell: Callable[[str], str]  # published module path -> the path in the file
    down: str = "lora_down.weight"
    up: str = "lora_up.weight"
    has_alpha: bool = True


def diffusers_path(path: str) -> str:
    return dit_names(40)[path]


def flat(path: str) -> str:
    return path.replace(".", "_")


FAMILIES: dict[str, Family] = {
    "comfyui": Family(lambda path: f"diffusion_model.{path}"),
    "comfyui, lora_A": Family(lambda path: f"model.diffusion_model.{path}", "lora_A.weight", "lora_B.weight"),
    "kohya": Family(lambda path: f"lora_unet_{flat(path)}"),
    "fun": Family(lambda path: f"lora_unet__{flat(path)}"),
    "diffusers": Family(lambda path: f"transformer.{diffusers_path(path)}", "lora_A.weight", "lora_B.weight", has_alpha=False),
    "peft": Family(lambda path: f"base_model.model.{path}", "lora_A.default.weight", "lora_B.default.weight", has_alpha=False),
    "diffsynth": Family(lambda path: path, "lora_A.default.weight", "lora_B.default.weight", has_alpha=False),
    "diffsynth, pipe": Family(lambda path: f"pipe.dit.{path}", "lora_A.weight", "lora_B.weight", has_alpha=False),
    "lycoris": Family(lambda path: f"lycoris_{flat(diffusers_path(path))}"),
}
TARGETS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.0.ffn.0", "blocks.1.ffn.2", "text_embedding.0", "head.head")


def low_rank(
    shapes: Mapping[str, Sequence[int]],
    family: Family,
    *,
    targets: Sequence[str] = TARGETS,
    rank: int = 4,
    alpha: float = 2.0,
    seed: int = 0,
) -> tuple[Tensors, Tensors]:
    """(tensors of the file, parameter -> difference at strength 1), for a model with parameters of `shapes`."""
    tensors: Tensors = {}
    differences: Tensors = {}
    for path in targets:
        rows, *columns = shapes[f"{path}.weight"]
        down = seeded_tensor(f"{path}.down", (rank, *columns), seed)
        up = seeded_tensor(f"{path}.up", (rows, rank, *[1] * (len(columns) - 1)), seed)
        spelled = family.spell(path)
        tensors |= {f"{spelled}.{family.down}": down, f"{spelled}.{family.up}": up}
        if family.has_alpha:
            tensors[f"{spelled}.alpha"] = torch.tensor(alpha)
        factor = alpha / rank if family.has_alpha else 1.0
        differences[f"{path}.weight"] = factor * (up.flatten(1) @ down.flatten(1)).view(rows, *columns)
    return tensors, differences


def full_differences(shapes: Mapping[str, Sequence[int]], *, seed: int = 0) -> tuple[Tensors, Tensors]:
    """Full-difference keys of every kind, in ComfyUI's spelling, as (tensors of the file, differences)."""
    keys = {
        "blocks.0.norm3.diff": "blocks.0.norm3.weight",
        "blocks.0.norm3.diff_b": "blocks.0.norm3.bias",
        "blocks.1.self_attn.norm_q.diff": "blocks.1.self_attn.norm_q.weight",
        "blocks.1.self_attn.q.diff_b": "blocks.1.self_attn.q.bias",
        "blocks.1.self_attn.k.diff": "blocks.1.self_attn.k.weight",
        "blocks.1.diff_m": "blocks.1.modulation",
        "head.head.diff": "head.head.weight",
        "patch_embedding.diff": "patch_embedding.weight",
        "patch_embedding.diff_b": "patch_embedding.bias",
        "time_projection.1.diff_b": "time_projection.1.bias",
    }
    differences = {parameter: 0.3 * seeded_tensor(key, shapes[parameter], seed) for key, parameter in keys.items()}
    return {f"diffusion_model.{key}": differences[parameter] for key, parameter in keys.items()}, differences


def write(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=dict(metadata) if metadata else None)
    return path
