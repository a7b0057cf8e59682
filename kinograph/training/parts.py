"""Weights in several files that are each small enough to travel: `<stem>.part0.safetensors`, `.part1`, ...

Each part carries the same metadata and says how many parts there are, so a missing one is noticed.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kinograph.errors import CheckpointError

PART_BYTES = 15 * 2**20


def save_parts(
    tensors: Mapping[str, Tensor],
    folder: str | Path,
    stem: str,
    *,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
    limit: int = PART_BYTES,
) -> list[Path]:
    """Writes `tensors`, cast to `dtype`, and returns the files. Parts of an earlier save under `stem` are replaced."""
    groups: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        stored = tensor.detach().to("cpu", dtype).contiguous()
        size = stored.numel() * stored.element_size()
        if groups[-1] and used + size > limit:
            groups.append({})
            used = 0
        groups[-1][name] = stored
        used += size
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{stem}.part*.safetensors"):
        old.unlink()
    files = [folder / f"{stem}.part{i}.safetensors" for i in range(len(groups))]
    for file, group in zip(files, groups):
        save_file(group, file, metadata={**(metadata or {}), "parts": str(len(groups))})
    return files


def load_parts(folder: str | Path, stem: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (as stored, on the CPU) and metadata of `save_parts`."""
    files = sorted(Path(folder).glob(f"{stem}.part*.safetensors"))
    if not files:
        raise CheckpointError(f"there is no {stem}.part0.safetensors in {folder}; train it first, or name the folder that has it")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        with safe_open(file, framework="pt") as part:
            metadata = part.metadata() or {}
            tensors.update({name: part.get_tensor(name) for name in part.keys()})  # noqa: SIM118 (not a mapping)
    if int(metadata.get("parts", "1")) != len(files):
        raise CheckpointError(f"{folder} has {len(files)} of the {metadata['parts']} parts of {stem}; copy the missing ones there")
    return tensors, metadata


def load_modules(folder: str | Path, stem: str, modules: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """State dicts by module, from parts whose names are "<module>.<parameter>"; empty for a module that is not there."""
    tensors, _ = load_parts(folder, stem)
    return {key: {n[len(key) + 1 :]: t for n, t in tensors.items() if n.startswith(f"{key}.")} for key in modules}
