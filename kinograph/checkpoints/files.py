"""Weight files one at a time: is it whole, and what does it hold. Nothing here reads more than headers.

    safetensors   8 bytes little-endian header length, JSON header, data; mapped into memory, never copied on the host
    .pth          a plain state dict, or one under "state_dict", written by `torch.save` in its zip format; unpickled with weights
                  only, mapped
    .gguf         quantised blocks, widened while they are read (`gguf_files.py`)

The first bytes of a file say which of these it is; its name counts only where they say nothing.
"""
from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from kinograph.checkpoints import gguf_files
from kinograph.checkpoints.storage import Pair
from kinograph.errors import CheckpointError

LENGTH_BYTES = 8
SAFETENSORS, PTH, GGUF = "safetensors", "pth", "gguf"
ZIP_MAGIC = b"PK\x03\x04"
MAX_HEADER = 100 * 2**20  # as in the reference implementation of the format
SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def file_format(path: Path) -> str:
    """SAFETENSORS, PTH or GGUF."""
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES + 1)
    if start.startswith(gguf_files.MAGIC):
        return GGUF
    if path.suffix in (".safetensors", ".sft"):  # a zip file under this name is damaged: torch.load goes by the name too
        return SAFETENSORS
    return SAFETENSORS if start.endswith(b"{") and not start.startswith(ZIP_MAGIC) else PTH


def file_problem(path: Path) -> str | None:
    """What is wrong with a weight file, as one sentence with the remedy; None if it looks whole."""
    if not path.is_file():
        return f"{path} is missing; download it again"
    size = path.stat().st_size
    if size == 0:
        return f"{path} is empty; download it again"
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder or download it again"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return f"{path} is a web page, not weights; download it again (a login or a licence page may have been saved in its place)"
    kind = file_format(path)
    if kind == GGUF:
        return gguf_files.problem(path)
    return _safetensors_problem(path, size) if kind == SAFETENSORS else _zip_problem(path, start)


def describe(path: Path) -> dict[str, torch.Tensor]:
    """Tensors on the meta device, with the names, shapes and dtypes that the file holds."""
    kind = file_format(path)
    if kind == GGUF:
        return gguf_files.describe(path)
    if kind == SAFETENSORS:
        return {name: _meta_tensor(path, name, entry) for name, entry in _read_header(path).items()}
    return _load_pth(path, device="meta")


def metadata(path: Path) -> dict[str, str]:
    """What the file says about itself in words, if anything."""
    kind = file_format(path)
    if kind == GGUF:
        return gguf_files.metadata(path)
    if kind == SAFETENSORS:
        return {key: str(value) for key, value in _read_json(path).get("__metadata__", {}).items()}
    return {}


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """One tensor of the file, on the CPU."""
    return next(tensor for _, tensor in read_tensors(path, only=(name,)))


def read_tensors(path: Path, *, only: Collection[str] | None = None) -> Iterator[Pair]:
    """(name, tensor) for each tensor of the file, or `only` for some, in the order of `describe`.

    They are on the CPU and, but for quantised ones, backed by the file: pages are read when touched.
    """
    kind = file_format(path)
    if kind == SAFETENSORS:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in _read_header(path):
                if only is None or name in only:
                    yield name, file.get_tensor(name)
        return
    stream = gguf_files.read_tensors(path) if kind == GGUF else iter(_load_pth(path, device="cpu").items())
    yield from (pair for pair in stream if only is None or pair[0] in only)


# --------------------------------------------------------------------------------------------------- safetensors


def _safetensors_problem(path: Path, size: int) -> str | None:
    try:
        header = _read_header(path)
        end = LENGTH_BYTES + _header_length(path) + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return f"{path} is not a safetensors file, or its header is damaged; download it again"
    if size < end:
        return f"{path} is cut off: it has {size:,} of {end:,} bytes; download it again"
    if size > end:
        return f"{path} is damaged: it has {size:,} bytes where its header says {end:,}; download it again"
    return None


def _header_length(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(LENGTH_BYTES), "little")


def _read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> {"dtype", "shape", "data_offsets"}; ValueError if there is none."""
    return {name: entry for name, entry in _read_json(path).items() if name != "__metadata__"}


def _read_json(path: Path) -> dict[str, Any]:
    length = _header_length(path)
    if not 0 < length <= min(MAX_HEADER, path.stat().st_size - LENGTH_BYTES):
        raise ValueError(f"a header of {length} bytes is not plausible")
    with path.open("rb") as file:
        file.seek(LENGTH_BYTES)
        return json.loads(file.read(length))


def _meta_tensor(path: Path, name: str, entry: dict[str, Any]) -> torch.Tensor:
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(
            f"{path} stores {name} as {entry['dtype']}, which this version cannot read; "
            f"it reads {', '.join(SAFETENSORS_DTYPES)}, so convert or download another file"
        )
    return torch.empty(entry["shape"], dtype=dtype, device="meta")


# ----------------------------------------------------------------------------------------------------------- .pth


def _zip_problem(path: Path, start: bytes) -> str | None:
    if not start.startswith(ZIP_MAGIC):
        return (
            f"{path} is not a PyTorch file in zip format; download it again, or if it is an old file, "
            "load and save it once with a current PyTorch"
        )
    # The directory of a zip file is at its end, so a download that stopped early has none.
    return None if zipfile.is_zipfile(path) else f"{path} is cut off: the directory at its end is missing; download it again"


def _load_pth(path: Path, *, device: str) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a plain state dict ({str(error).splitlines()[0]}); download it again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):  # beside it, training programs keep counters and settings
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds something other than a plain state dict of tensors; use the published file")
    return state
