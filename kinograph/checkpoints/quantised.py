"""fp8 weights of single files, as ComfyUI writes them: what a header says about them, reading and writing.

    LAYER.weight        float8_e4m3fn or float8_e5m2; real weight = value * scale
    LAYER.scale_weight  float32, one element        older files, which also have the tensor `scaled_fp8` as a marker
    LAYER.weight_scale  float32, one element        newer files, with LAYER.comfy_quant (JSON as bytes) or with a table
                                                    in the metadata, "_quantization_metadata", that names the format
    LAYER.scale_input, LAYER.input_scale            for products in fp8; weights are widened here, so they are not used

fp8 weights without any scale and marker are weights that were merely rounded: they are read as they are. A file that
announces scales and lacks one is refused, and so are other formats (nvfp4, int8, ...), by name.
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch

from kinograph.checkpoints.storage import Pair, Step
from kinograph.errors import CheckpointError

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FP8_FORMATS = ("float8_e4m3fn", "float8_e5m2")
MARKER = "scaled_fp8"
SCALES = (".scale_weight", ".weight_scale")
FORMAT, METADATA = ".comfy_quant", "_quantization_metadata"
UNUSED = (".scale_input", ".input_scale", FORMAT)
# An embedding is looked up, not multiplied, so scaled files leave it without a scale.
EMBEDDINGS = re.compile(r"(^|\.)(token_embedding|shared|embed_tokens|relative_attention_bias|embedding)\.weight$")
# Names that give other quantisations away where nothing states the format.
FOREIGN = {
    r"\.weight_scale_2$": "nvfp4",
    r"\.quant_state\.bitsandbytes__|\.weight\.absmax$": "bitsandbytes",
    r"\.(qweight|qzeros)$": "GPTQ, AWQ or SVDQuant (packed integers)",
    r"\.weight\._(data|scale)$": "quanto",
}

Header = Mapping[str, torch.Tensor]


# ------------------------------------------------------------------------------------------------ what a header says


def scales_of(header: Header) -> dict[str, str]:
    """Weight -> name of its scale, for the scaled weights in a header (tensors on the meta device); our own int8 is none."""
    pairs = ((name, weight) for name in header for suffix in SCALES if (weight := _weight_of(name, suffix)) in header)
    return {weight: name for name, weight in pairs if header[weight].is_floating_point()}


def check_quantisation(header: Header, metadata: Mapping[str, str], layers: Mapping[str, bytes], *, where: Path) -> None:
    """Raises CheckpointError for a quantisation that cannot be read, or one that is incomplete.

    `layers` has the bytes of every tensor in the header whose name ends in FORMAT.
    """
    unreadable = _stated_formats(metadata, layers, where=where).difference(FP8_FORMATS) or _foreign(header)
    if unreadable:
        raise CheckpointError(
            f"{where} is quantised as {', '.join(sorted(unreadable))}, which this version cannot read; "
            f"use the file in fp16, bf16, fp8 ({' or '.join(FP8_FORMATS)}) or GGUF"
        )
    scales = scales_of(header)
    if not scales and not any(_is_marker(name) for name in header):
        return
    bare = [name for name, tensor in header.items() if _needs_scale(name, tensor) and name not in scales]
    if bare:
        raise CheckpointError(
            f"{where} says that its fp8 weights are scaled, but {len(bare)} of them have no scale ({bare[0]}, ...); "
            "without scales they are worthless: download the file again, or another one"
        )


def _weight_of(scale: str, suffix: str) -> str:
    return scale.removesuffix(suffix) + ".weight" if scale.endswith(suffix) else ""


def _is_marker(name: str) -> bool:
    return name == MARKER or name.endswith("." + MARKER)


def _needs_scale(name: str, tensor: torch.Tensor) -> bool:
    return tensor.dtype in FP8 and tensor.ndim == 2 and not EMBEDDINGS.search(name)


def _stated_formats(metadata: Mapping[str, str], layers: Mapping[str, bytes], *, where: Path) -> set[str]:
    try:
        entries = [*json.loads(metadata.get(METADATA, "{}")).get("layers", {}).values(), *map(json.loads, layers.values())]
        return {str(entry["format"]) for entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where} describes its quantisation in a way that cannot be read ({error!r}); download it again") from error


def _foreign(header: Header) -> set[str]:
    found = {what for pattern, what in FOREIGN.items() if any(re.search(pattern, name) for name in header)}
    packed = any(name.endswith(".weight") and tensor.dtype == torch.uint8 for name, tensor in header.items())
    return found or ({"packed integers of an unknown kind"} if packed else set())


# --------------------------------------------------------------------------------------------------------- reading


def dequantised(scales: Mapping[str, str]) -> Step:
    """The step that restores fp8 weights: scaled ones in float32, others exactly, in bfloat16.

    `scales`: as `scales_of` gives it. A weight and its scale may come in either order.
    """
    weights = {scale: weight for weight, scale in scales.items()}

    def step(stream: Iterable[Pair]) -> Iterator[Pair]:
        waiting: dict[str, torch.Tensor] = {}
        for name, tensor in stream:
            partner = scales.get(name) or weights.get(name)
            if partner in waiting:
                other = waiting.pop(partner)
                weight, values, scale = (name, tensor, other) if name in scales else (partner, other, tensor)
                yield weight, _scaled(values, scale, weight)
            elif partner:
                waiting[name] = tensor
            elif not _is_marker(name) and not name.endswith(UNUSED):
                yield name, tensor.to(torch.bfloat16) if tensor.dtype in FP8 else tensor

    return step


def _scaled(values: torch.Tensor, scale: torch.Tensor, name: str) -> torch.Tensor:
    if scale.numel() == 1:
        return values.float() * scale.float().reshape(())
    if scale.numel() == values.shape[0] == scale.shape[0]:  # one for each output channel
        return values.float() * scale.float().reshape(-1, *[1] * (values.ndim - 1))
    raise CheckpointError(
        f"the scale of {name} has the shape {list(scale.shape)} for a weight of {list(values.shape)}, which is neither one scale "
        "for the tensor nor one for each row; use a file with per-tensor scales"
    )


# --------------------------------------------------------------------------------------------------------- writing


def announce_fp8(header: Header, quantised: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """The header of a scaled fp8 file for weights with the header given: those that `quantised` names become fp8."""
    written: dict[str, torch.Tensor] = {}
    for name, tensor in header.items():
        if quantised(name):
            written[name] = torch.empty(tensor.shape, dtype=FP8[0], device="meta")
            written[name.removesuffix(".weight") + SCALES[0]] = torch.empty(1, dtype=torch.float32, device="meta")
        else:
            written[name] = tensor
    written[MARKER] = torch.empty(2, dtype=FP8[0], device="meta")  # two elements: multiply in full precision
    return written


def quantise_fp8(stream: Iterable[Pair], quantised: Callable[[str], bool]) -> Iterator[Pair]:
    """The tensors that `announce_fp8` announces: max|weight| becomes the largest float8_e4m3fn, 448.

    Rounding costs at most 1/16 of a value, or 2^-10 of the tensor's largest value divided by 448 near zero.
    """
    for name, tensor in stream:
        if not quantised(name):
            yield name, tensor
            continue
        largest = torch.finfo(FP8[0]).max
        weight = tensor.float()
        scale = (weight.abs().amax() / largest).clamp_min(torch.finfo(torch.float32).tiny)
        yield name, (weight / scale).clamp_(-largest, largest).to(FP8[0])
        yield name.removesuffix(".weight") + SCALES[0], scale.reshape(1)
    yield MARKER, torch.zeros(2).to(FP8[0])
