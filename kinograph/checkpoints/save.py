"""Modules to a folder in the published layout (`layout.py`), written whole or not at all."""
from __future__ import annotations

import filecmp
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from kinograph.checkpoints.files import LENGTH_BYTES, SAFETENSORS_DTYPES
from kinograph.checkpoints.layout import CONFIG, DIT_FILE, SPEECH_FILE, config_json, model_names
from kinograph.checkpoints.recognise import IMAGE_ENCODER, SPEECH_ENCODER, TEXT_ENCODER, VAE_NAME
from kinograph.checkpoints.storage import Pair, pack_int8
from kinograph.config import ModelSpec
from kinograph.errors import CheckpointError

SHARD_BYTES = 10 * 10**9
DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}

State = Mapping[str, torch.Tensor]


def save_checkpoint(
    folder: str | Path,
    spec: ModelSpec,
    models: Mapping[str, nn.Module | State],
    *,
    tokenizer: str | Path,
    dtype: torch.dtype | None = None,
    int8: Collection[str] = (),
    keep: Callable[[str], bool] = lambda name: False,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """`folder`, holding the models of `spec` in the published layout.

    `models`: a module or its state dict for every name in `layout.model_names(spec)`. `tokenizer`: a folder to copy.
    `dtype` converts floating-point tensors; models named in `int8` are stored in 8 bits, but for tensors that `keep`
    names. Everything is written beside `folder` and then renamed, so an interrupted call leaves no half checkpoint.
    Files that `spec` keeps outside its folder belong to several models: one that is there already must be the one that
    would be written, unless `overwrite`; else CheckpointError.
    """
    if set(models) != set(model_names(spec)):
        raise ValueError(f"{spec.name} consists of {', '.join(model_names(spec))}; got {', '.join(models)}")

    def stored(name: str) -> dict[str, torch.Tensor]:
        state = plain_state(models[name], dtype=dtype)
        return pack_int8(state, keep=keep) if name in int8 else state

    with replaced_folder(Path(folder), overwrite=overwrite) as work:
        for expert in spec.experts:
            write_dit(work / expert.folder, stored(expert.name), spec=spec, shard_bytes=shard_bytes)
        with _new(work, spec.files.vae, overwrite=overwrite) as path:
            write_pth(path, stored(VAE_NAME))
        with _new(work, spec.files.text_encoder, overwrite=overwrite) as path:
            write_pth(path, stored(TEXT_ENCODER))
        if IMAGE_ENCODER in models:
            with _new(work, spec.files.image_encoder, overwrite=overwrite) as path:
                write_pth(path, stored(IMAGE_ENCODER))
        if SPEECH_ENCODER in models:
            with _new(work, spec.files.speech_encoder, overwrite=overwrite) as path:
                path.mkdir(parents=True)
                write_safetensors(path / SPEECH_FILE, stored(SPEECH_ENCODER))
        with _new(work, spec.files.tokenizer, overwrite=overwrite) as path:
            shutil.copytree(tokenizer, path)
    return Path(folder)


@contextmanager
def _new(folder: Path, name: str, *, overwrite: bool) -> Iterator[Path]:
    """Where to write the file, or folder, `name` of a new checkpoint; see `save_checkpoint` for names that lead out of it."""
    if ".." not in Path(name).parts:
        yield folder / name
        return
    shared = Path(os.path.normpath(folder / name))
    with unfinished(shared) as partial:
        yield partial
        if overwrite and shared.is_dir():
            shutil.rmtree(shared)
        if overwrite or not shared.exists():
            os.replace(partial, shared)
        elif not _same(partial, shared):
            raise CheckpointError(f"{shared} belongs to other models too, and is not what would be written; remove or overwrite it")


def _same(a: Path, b: Path) -> bool:
    """Whether two files, or all files in two folders, have the same contents."""
    if not a.is_dir():
        return b.is_file() and filecmp.cmp(a, b, shallow=False)
    names = [sorted(path.relative_to(root) for path in root.rglob("*")) for root in (a, b)]
    return names[0] == names[1] and all(_same(a / name, b / name) for name in names[0] if (a / name).is_file())


def plain_state(model: nn.Module | State, *, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The state dict on the CPU, each tensor contiguous in memory of its own; floating-point ones in `dtype` if given."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    return {name: _plain(tensor, dtype if tensor.is_floating_point() else None) for name, tensor in state.items()}


def write_dit(
    folder: Path, state: State, *, spec: ModelSpec, shard_bytes: int = SHARD_BYTES, value: Callable[[str], torch.Tensor] | None = None
) -> None:
    """config.json and the weights of a transformer: one file, or shards of at most `shard_bytes` with their index.

    `value` as for `write_safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config_json(spec), indent=2) + "\n", encoding="utf-8")
    shards = split_shards(state, limit=shard_bytes)
    for file, names in shards.items():
        write_safetensors(folder / file, {name: state[name] for name in names}, value=value)
    if len(shards) > 1:
        write_index(folder, state, shards)


def split_shards(state: State, *, limit: int, file: str = DIT_FILE) -> dict[str, list[str]]:
    """File name -> tensor names, in order; a tensor larger than `limit` bytes gets a file of its own.

    One file is called `file`; several are numbered.
    """
    groups: list[list[str]] = []
    size = 0
    for name, tensor in state.items():
        if not groups or size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) == 1:
        return {file: groups[0]}
    stem, suffix = file.rsplit(".", 1)
    return {f"{stem}-{i:05d}-of-{len(groups):05d}.{suffix}": names for i, names in enumerate(groups, start=1)}


def write_index(folder: Path, state: State, shards: Mapping[str, list[str]], *, file: str = DIT_FILE) -> None:
    """The index that says which shard of `file` has which tensor."""
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())},
        "weight_map": {name: shard for shard, names in shards.items() for name in names},
    }
    (folder / f"{file}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_safetensors(path: Path, tensors: State, *, value: Callable[[str], torch.Tensor] | None = None) -> None:
    """Streams tensors into a safetensors file, one at a time.

    With `value`, `tensors` may be on the meta device, and `value(name)` gives each when its turn comes: a file may then
    be larger than the memory.
    """
    ordered = _aligned(tensors)
    with path.open("wb") as file:
        file.write(_safetensors_header(ordered))
        for name, announced in ordered.items():
            file.write(_bytes(name, tensors[name] if value is None else value(name), announced))


def write_stream(files: Mapping[Path, State], stream: Iterable[Pair], *, metadata: Mapping[str, str] | None = None) -> None:
    """Safetensors files from one stream that has the tensors of all of them, in any order: each goes to its place as it comes.

    `files`: what each file is to hold, on the meta device or not. `metadata` is added to every header.
    """
    with ExitStack() as stack:
        places: dict[str, tuple[BinaryIO, int, torch.Tensor]] = {}
        for path, tensors in files.items():
            file, ordered = stack.enter_context(path.open("wb")), _aligned(tensors)
            file.write(_safetensors_header(ordered, metadata))
            offset = file.tell()
            for name, announced in ordered.items():
                places[name] = (file, offset, announced)
                offset += announced.nbytes
        for name, tensor in stream:
            target, offset, announced = places.pop(name)
            target.seek(offset)
            target.write(_bytes(name, tensor, announced))
        if places:
            raise ValueError(f"{len(places)} announced tensors did not come, such as {next(iter(places))}")


def _aligned(tensors: State) -> dict[str, torch.Tensor]:
    """In the order of a file: larger elements first keeps every tensor aligned to its element size."""
    return {name: tensors[name] for name in sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)}


def _bytes(name: str, tensor: torch.Tensor, announced: torch.Tensor) -> memoryview:
    expected, got = ((t.dtype, list(t.shape)) for t in (announced, tensor))
    if got != expected:
        raise ValueError(f"{name} was announced as {expected}, but is {got}")
    return _plain(tensor, None).reshape(-1).view(torch.uint8).numpy().data


def write_pth(path: Path, state: State) -> None:
    """A plain state dict as `torch.load(weights_only=True, mmap=True)` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(plain_state(state), path)


@contextmanager
def replaced_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """An empty folder to write in, which becomes `folder` if the block succeeds and disappears if it does not."""
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} already exists and is not empty; choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    try:
        work.chmod(0o755)  # mkdtemp gives the folder to its owner alone
        yield work
        if folder.exists():
            retired = work.with_suffix(".replaced")
            folder.rename(retired)
            work.rename(folder)
            shutil.rmtree(retired)
        else:
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A path of the same name to write at, on the same disk as `path`; what is left there after the block disappears."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", suffix=".partial", dir=path.parent) as work:
        yield Path(work) / path.name


def _plain(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    tensor = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
    # A view would drag its whole storage into a .pth file.
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _safetensors_header(tensors: State, metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
