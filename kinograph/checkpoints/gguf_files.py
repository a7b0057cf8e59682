"""GGUF files through the package `gguf`: read with any type it can widen, written with the types it can quantise to.

Shapes in a GGUF file run fastest axis first; here they are as in PyTorch. Quantised tensors come out as float32, others
in their own dtype. Single files of the transformer have the architecture "wan" and the published names; those of the text
encoder are llama.cpp's "t5encoder".
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kinograph.checkpoints.storage import Pair
from kinograph.errors import CheckpointError, MissingExtraError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from gguf.gguf_reader import ReaderTensor

MAGIC = b"GGUF"
QUANTISE_TYPES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")  # those that the package can write
TRANSFORMER, TEXT_ENCODER = "wan", "t5encoder"  # architectures
# Written by converters that fold axes of length 1 or group channels: the shape that a tensor had.
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
_PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8,
          "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}  # fmt: skip


# --------------------------------------------------------------------------------------------------------- reading


def problem(path: Path) -> str | None:
    """What is wrong with the file, as one sentence; None if it can be read."""
    try:
        types = tensor_types(path)
    except CheckpointError as error:
        return str(error)
    unknown = sorted(set(types) - set(_PLAIN) - _widened())
    if unknown:
        names = ", ".join(unknown)
        return f"{path} has tensors of the type {names}, which cannot be widened; use a file in another type, such as Q8_0, Q6_K or Q4_K"
    return None


def describe(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor on the meta device, with the shape and dtype that `read_tensors` gives."""
    reader = _open(path)
    return {
        tensor.name: torch.empty(_shape(reader, tensor), dtype=_PLAIN.get(tensor.tensor_type.name, torch.float32), device="meta")
        for tensor in reader.tensors
    }


def read_tensors(path: Path) -> Iterator[Pair]:
    """(name, tensor) for each tensor, on the CPU, one widened at a time."""
    import gguf.quants

    reader = _open(path)
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        if kind in _PLAIN:
            values = torch.from_numpy(np.array(tensor.data).reshape(-1).view(np.uint8)).view(_PLAIN[kind])
        else:
            values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        yield tensor.name, values.reshape(_shape(reader, tensor))


def metadata(path: Path) -> dict[str, str]:
    """The file's own words about itself: the entries that are text."""
    from gguf import GGUFValueType

    fields = _open(path).fields.items()
    return {key: str(field.contents()) for key, field in fields if field.types[:1] == [GGUFValueType.STRING]}


def tensor_types(path: Path) -> Counter[str]:
    """How many tensors the file has of each type, by the type's name, such as Q4_K."""
    return Counter(tensor.tensor_type.name for tensor in _open(path).tensors)


def _open(path: Path) -> GGUFReader:
    status = path.stat()
    return _reader(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2)  # text encoders carry a vocabulary, which takes seconds to parse
def _reader(path: Path, size: int, time: int) -> GGUFReader:
    gguf = _package(f"reading {path.name}")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        if number := re.search(r"(\d+)\)? is not a valid GGMLQuantizationType", str(error)):
            raise CheckpointError(
                f"{path} has tensors of the GGUF type number {number[1]}, which gguf {_version()} does not know; "
                "use a file of another type, or a newer gguf package: pip install --upgrade gguf"
            ) from error
        raise CheckpointError(f"{path} is cut off or is not a GGUF file that can be read ({error}); download it again") from error


def _package(purpose: str) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError(purpose, "gguf", "gguf") from error
    return gguf


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")


def _shape(reader: GGUFReader, tensor: ReaderTensor) -> list[int]:
    field = reader.get_field(ORIGINAL_SHAPE + tensor.name)
    return [int(size) for size in (tensor.shape[::-1] if field is None else field.contents())]


def _widened() -> set[str]:
    """Names of the quantised types that the package can widen."""
    import gguf

    def can(kind: Any) -> bool:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        try:
            gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            return False
        return block > 0

    return {kind.name for kind in gguf.GGMLQuantizationType if kind.name not in _PLAIN and can(kind)}


# --------------------------------------------------------------------------------------------------------- writing


def write(
    path: Path,
    announced: Mapping[str, torch.Tensor],
    stream: Iterable[Pair],
    *,
    architecture: str,
    kind: str,
    quantised: Callable[[str], bool],
    words: Mapping[str, str],
) -> None:
    """A GGUF file, written tensor by tensor.

    `announced` (on the meta device) has the names and shapes of `stream`, in its order. Matrices that `quantised` names
    are stored as `kind`, one of QUANTISE_TYPES, or as F16 where a row is no multiple of 32; all else as F32, but
    matrices in half precision keep it. `words`: text about the file, by key.
    """
    gguf = _package(f"writing {path.name}")
    writer = gguf.GGUFWriter(path, architecture)
    try:
        for key, value in words.items():
            writer.add_string(key, value)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        types = {name: _type_for(tensor, kind if quantised(name) else None) for name, tensor in announced.items()}
        for name, tensor in announced.items():
            writer.add_tensor_info(name, *_announcement(tensor, types[name]), raw_dtype=types[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in stream:
            writer.write_tensor_data(gguf.quants.quantize(tensor.float().contiguous().numpy(), types[name]))
    finally:
        writer.close()


def _type_for(tensor: torch.Tensor, kind: str | None) -> Any:
    import gguf

    if tensor.ndim != 2:  # vectors are few and sensitive; readers expect convolutions unquantised
        return gguf.GGMLQuantizationType.F32
    if kind is None:
        half = {torch.float16: "F16", torch.bfloat16: "BF16"}
        return gguf.GGMLQuantizationType[half.get(tensor.dtype, "F32")]
    wanted = gguf.GGMLQuantizationType[kind.upper()]
    return wanted if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0 else gguf.GGMLQuantizationType.F16


def _announcement(tensor: torch.Tensor, kind: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """(shape, numpy dtype, bytes) as the writer wants them: quantised tensors as rows of bytes."""
    import gguf

    plain = {"F32": np.float32, "F16": np.float16}
    if kind.name in plain:
        dtype = np.dtype(plain[kind.name])
        return tuple(tensor.shape), dtype, tensor.numel() * dtype.itemsize
    shape = gguf.quant_shape_to_byte_shape(tuple(tensor.shape), kind)
    return shape, np.dtype(np.uint8), int(np.prod(shape))
