"""One checkpoint in another layout: published, diffusers, or single files as ComfyUI has them; optionally quantised.

    convert_folder   every model of a checkpoint, from any layout (and parts from elsewhere)
    convert_file     the one model in a file, or in the shards of an index

Tensors pass one at a time: read, restored, cast, quantised, renamed, written at their place. Memory holds the largest of
them; only the .pth files of the published layout are put together first. What is written appears under its name when it
is whole, or not at all.

Quantised are the linears of the blocks of the transformer and of the text encoder. Embeddings, norms, modulation and
the head are small and sensitive and keep their dtype, and so does the VAE, which `dtype` does not touch either.
"""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from kinograph.checkpoints import comfyui_tree, diffusers_folder, formats, gguf_files, wording
from kinograph.checkpoints.files import read_tensors
from kinograph.checkpoints.layout import (
    CONFIG,
    DIT_FILE,
    TEXT_ENCODER,
    VAE_NAME,
    Parts,
    Weights,
    check_model,
    config_json,
    model_names,
    open_checkpoint,
    tokenizer_folder,
)
from kinograph.checkpoints.quantised import announce_fp8, quantise_fp8
from kinograph.checkpoints.recognise import EMBEDDED_TOKENIZERS, Contents, model_files, recognise
from kinograph.checkpoints.save import SHARD_BYTES, replaced_folder, split_shards, unfinished, write_index, write_pth, write_stream
from kinograph.checkpoints.storage import Pair
from kinograph.checkpoints.tokenizer_files import SPIECE, TOKENIZER_JSON, tokenizer_bytes, write_tokenizer_json
from kinograph.config import MODELS, ModelSpec
from kinograph.errors import CheckpointError

PUBLISHED, DIFFUSERS, SINGLE = LAYOUTS = ("published", "diffusers", "single")
FP8 = "fp8"
QUANTISATIONS = (FP8, *gguf_files.QUANTISE_TYPES)
QUANTISED_BYTES = 34 / 32  # of a weight, at most: Q8_0, with a scale of two bytes for 32 of them
TEXT_FILE = "model.safetensors"  # of the text encoder in the layout of diffusers
TOKENIZER_CONFIG = "tokenizer_config.json"

State = Mapping[str, torch.Tensor]
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What to write."""

    layout: str  # one of LAYOUTS
    dtype: torch.dtype | None = None  # of transformers and text encoder; None: as stored, or bfloat16 if they were quantised
    quantise: str | None = None  # one of QUANTISATIONS
    shard_bytes: int = SHARD_BYTES
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.quantise and self.layout != SINGLE:
            raise CheckpointError(f"--quantise {self.quantise} is for single files; use it with --to {SINGLE}, not --to {self.layout}")

    @property
    def is_gguf(self) -> bool:
        return self.quantise in gguf_files.QUANTISE_TYPES


def convert_folder(
    spec: ModelSpec, source: str | Path, target: str | Path, to: Target, *, parts: Parts | None = None, report: Report = lambda line: None
) -> Path:
    """Folder `target`, holding the models of `spec` that `source` (any layout) and `parts` have, in the layout of `to`."""
    target = Path(target)
    if spec.speech_encoder is not None or spec.image_encoder is not None:
        raise CheckpointError(
            f"folders of {spec.name} are read as published and not converted; its transformer alone can be: give that file as the source"
        )
    if to.layout == PUBLISHED and ".." in Path(spec.files.vae).parts:
        raise CheckpointError(f"{spec.name} shares files with models outside its folder; write it with --to {DIFFUSERS} or --to {SINGLE}")
    checkpoint = open_checkpoint(spec, source, parts=parts)
    models = {name: Model(spec, name, weights, to) for name, weights in checkpoint.weights.items()}
    _check_space(target.parent, sum(model.num_bytes for model in models.values()))
    write = {PUBLISHED: _write_published, DIFFUSERS: _write_diffusers, SINGLE: _write_tree}[to.layout]
    with replaced_folder(target, overwrite=to.overwrite) as work:
        write(work, spec, models, checkpoint.tokenizer, report)
    return target


def convert_file(source: str | Path, target: str | Path, to: Target, *, spec: ModelSpec | None = None) -> Path:
    """The model in `source` as the file `target`; in the layout of diffusers as a folder, with its config.json.

    `spec` is needed where the sizes of the model are in no row of the model table.
    """
    source, target = Path(source), Path(target)
    contents = recognise(model_files(source))
    if spec is None:
        if not contents.models:
            raise CheckpointError(f"{source} is of no model in the table; say with --task whose it is, if it is")
        spec = MODELS[contents.models[0]]
    name = _model_of(spec, contents)
    model = Model(spec, name, check_model(spec, name, contents.files), to)
    _check_space(target.parent, model.num_bytes)
    if to.layout == DIFFUSERS:
        with replaced_folder(target, overwrite=to.overwrite) as work:
            _write_diffusers_model(work, spec, model)
        return target
    tokenizer = _embedded(contents.files[0]) if contents.embedded and to.layout == SINGLE and not to.is_gguf else {}
    with _replaced_file(target, overwrite=to.overwrite) as work:
        if to.layout == PUBLISHED and target.suffix == ".pth":
            write_pth(work, dict(model.stream()))
        else:
            _write_single(work, spec, model, extra=tokenizer)
    return target


# ------------------------------------------------------------------------------------------------- one model's tensors


class Model:
    """One model on its way: what its tensors will be, and the tensors, both in published names."""

    def __init__(self, spec: ModelSpec, name: str, weights: Weights, to: Target) -> None:
        self.name = name
        self.to = to
        self._weights = weights
        widened = torch.bfloat16 if weights.contents.quantised else None
        self._dtype = None if name == VAE_NAME else to.dtype or widened
        self.announced: dict[str, torch.Tensor] = dict(self._cast(weights.tensors.items()))
        self.num_layers = spec.text.num_layers if name == TEXT_ENCODER else spec.dit.num_layers
        self.kind = wording.kind_of(spec, name)

    @property
    def is_quantised(self) -> bool:
        return bool(self.to.quantise) and self.name != VAE_NAME

    @property
    def num_bytes(self) -> int:
        """The size on disk, or a little more."""
        sizes = ((name, tensor.numel(), tensor.nbytes) for name, tensor in self.announced.items())
        return sum(int(count * QUANTISED_BYTES) if self.quantises(name) else stored for name, count, stored in sizes)

    def stream(self) -> Iterator[Pair]:
        """The tensors, in the order and the dtypes of `announced`."""
        stream: Iterable[Pair] = (pair for path in self._weights.files for pair in read_tensors(path))
        for step in self._weights.steps:
            stream = step(stream)
        return self._cast(stream)

    def quantises(self, name: str) -> bool:
        """Whether the tensor is a linear of a block, in published names."""
        is_linear = name.startswith("blocks.") and name.endswith(".weight") and "pos_embedding" not in name
        return self.is_quantised and is_linear and self.announced[name].ndim == 2

    def storage(self) -> str:
        """For file names."""
        if self.is_quantised:
            return "fp8_e4m3fn_scaled" if self.to.quantise == FP8 else str(self.to.quantise).upper()
        largest = max(self.announced.values(), key=torch.Tensor.numel)
        return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}.get(largest.dtype, str(largest.dtype))

    def _cast(self, stream: Iterable[Pair]) -> Iterator[Pair]:
        for name, tensor in stream:
            yield name, tensor.to(self._dtype) if self._dtype and tensor.is_floating_point() else tensor


def _model_of(spec: ModelSpec, contents: Contents) -> str:
    if contents.kind in (TEXT_ENCODER, VAE_NAME):
        return contents.kind
    return contents.expert if len(spec.experts) > 1 and contents.expert else spec.experts[0].name


# --------------------------------------------------------------------------------------------------------- layouts


def _write_published(work: Path, spec: ModelSpec, models: Mapping[str, Model], tokenizer: Path, report: Report) -> None:
    for expert in spec.experts:
        folder = work / expert.folder
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / CONFIG, config_json(spec))
        _write_shards(folder, DIT_FILE, models[expert.name], {})
        report(f"{expert.name} written")
    for name, file in ((VAE_NAME, spec.files.vae), (TEXT_ENCODER, spec.files.text_encoder)):
        write_pth(work / file, dict(models[name].stream()))
        report(f"{name} written")
    _write_tokenizer(tokenizer_folder(spec, work), tokenizer)


def _write_diffusers(work: Path, spec: ModelSpec, models: Mapping[str, Model], tokenizer: Path, report: Report) -> None:
    for name in model_names(spec):
        folder = work / diffusers_folder.model_folder(spec, name)
        folder.mkdir()
        _write_diffusers_model(folder, spec, models[name])
        report(f"{name} written")
    tokenizer_class = _write_diffusers_tokenizer(work / diffusers_folder.TOKENIZER, spec, tokenizer)
    scheduler = work / diffusers_folder.SCHEDULER
    scheduler.mkdir()
    _write_json(scheduler / "scheduler_config.json", diffusers_folder.scheduler_config(spec))
    _write_json(work / diffusers_folder.INDEX, diffusers_folder.index_json(spec, tokenizer_class=tokenizer_class))


def _write_diffusers_tokenizer(folder: Path, spec: ModelSpec, tokenizer: Path) -> str:
    """Writes the folder and returns the class that transformers opens it with."""
    _write_tokenizer(folder, tokenizer)
    path = folder / TOKENIZER_CONFIG
    if not path.exists():
        _write_json(path, diffusers_folder.tokenizer_config(spec, folder / TOKENIZER_JSON))
    return json.loads(path.read_text(encoding="utf-8")).get("tokenizer_class", "T5TokenizerFast")


def _write_diffusers_model(folder: Path, spec: ModelSpec, model: Model) -> None:
    if model.name == TEXT_ENCODER:
        config, names, file = diffusers_folder.text_config(spec), formats.t5_names(model.num_layers), TEXT_FILE
    elif model.name == VAE_NAME:
        config, names, file = diffusers_folder.vae_config(spec), formats.vae_names(spec.vae), DIT_FILE
    else:
        config, names, file = diffusers_folder.transformer_config(spec), formats.dit_names(model.num_layers), DIT_FILE
    _write_json(folder / CONFIG, config)
    _write_shards(folder, file, model, names)


def _write_tree(work: Path, spec: ModelSpec, models: Mapping[str, Model], tokenizer: Path, report: Report) -> None:
    gguf = next(iter(models.values())).to.is_gguf
    suffix = ".gguf" if gguf else ".safetensors"
    for expert in spec.experts:
        name = spec.name if len(spec.experts) == 1 else f"{spec.name}_{expert.name}"
        path = work / comfyui_tree.TRANSFORMERS / f"{name}_{models[expert.name].storage()}{suffix}"
        _write_single(path, spec, models[expert.name])
        report(f"{path.name} written")
    vae = work / comfyui_tree.VAES / {"2.1": "wan_2.1_vae.safetensors", "2.2": "wan2.2_vae.safetensors"}[spec.vae.version]
    _write_single(vae, spec, models[VAE_NAME])
    report(f"{vae.name} written")
    text = work / comfyui_tree.TEXT_ENCODERS / f"umt5_{models[TEXT_ENCODER].storage()}{suffix}"
    _write_single(text, spec, models[TEXT_ENCODER], extra={} if gguf else _embedded(tokenizer))
    report(f"{text.name} written")
    if gguf:  # which has no tensors of bytes
        _write_tokenizer(text.parent / "tokenizer", tokenizer)


def _write_single(path: Path, spec: ModelSpec, model: Model, *, extra: State | None = None) -> None:
    """One file: published names, but for the text encoder those of transformers, or of llama.cpp in a GGUF file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_text, title = model.name == TEXT_ENCODER, f"{spec.name} {model.name}"
    if model.to.is_gguf and model.is_quantised:
        names = formats.t5_gguf_names(model.num_layers) if is_text else {}
        _write_gguf(path, model, names, architecture=gguf_files.TEXT_ENCODER if is_text else gguf_files.TRANSFORMER, title=title)
        return
    extra = extra or {}
    names = formats.t5_names(model.num_layers) if is_text and model.to.layout == SINGLE else {}
    announced: State = model.announced
    stream = model.stream()
    if model.is_quantised:
        announced, stream = announce_fp8(announced, model.quantises), quantise_fp8(stream, model.quantises)
    announced = {**dict(formats.renamed(names)(announced.items())), **extra}
    write_stream({path: announced}, chain(formats.renamed(names)(stream), extra.items()), metadata={"modelspec.title": title})


def _write_gguf(path: Path, model: Model, names: formats.Names, *, architecture: str, title: str) -> None:
    quantised = {formats.rename(name, names) for name in model.announced if model.quantises(name)}
    gguf_files.write(
        path,
        dict(formats.renamed(names)(model.announced.items())),
        formats.renamed(names)(model.stream()),
        architecture=architecture,
        kind=str(model.to.quantise),
        quantised=quantised.__contains__,
        words={"general.name": title},
    )


def _write_shards(folder: Path, file: str, model: Model, names: formats.Names) -> None:
    announced = dict(formats.renamed(names)(model.announced.items()))
    shards = split_shards(announced, limit=model.to.shard_bytes, file=file)
    write_stream(
        {folder / shard: {name: announced[name] for name in members} for shard, members in shards.items()},
        formats.renamed(names)(model.stream()),
    )
    if len(shards) > 1:
        write_index(folder, announced, shards, file=file)


# ------------------------------------------------------------------------------------------------------- other files


def _write_tokenizer(folder: Path, source: Path) -> None:
    """The tokenizer's folder as it is, or one made from what is inside a text encoder's file."""
    if source.is_dir():
        wanted = (TOKENIZER_JSON, SPIECE, TOKENIZER_CONFIG, "special_tokens_map.json")
        folder.mkdir(parents=True)
        for name in wanted:
            if (source / name).exists():
                shutil.copyfile(source / name, folder / name)
    else:
        folder.mkdir(parents=True)
        name, data = tokenizer_bytes(source)
        (folder / name).write_bytes(data)
    if not (folder / TOKENIZER_JSON).exists():
        write_tokenizer_json(source, folder)


def _embedded(source: Path) -> State:
    """The tokenizer as ComfyUI embeds it: the bytes of its file as a tensor."""
    name, data = tokenizer_bytes(source)
    key = {SPIECE: EMBEDDED_TOKENIZERS[0], TOKENIZER_JSON: EMBEDDED_TOKENIZERS[1]}[name]
    return {key: torch.frombuffer(bytearray(data), dtype=torch.uint8)}


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _replaced_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path to write at, which becomes `path` if the block succeeds; if not, nothing is left."""
    if path.is_dir() or (path.exists() and not overwrite):
        raise CheckpointError(f"{path} exists already; choose another name, or add --overwrite to replace a file")
    with unfinished(path) as partial:
        yield partial
        os.replace(partial, path)


def _check_space(folder: Path, num_bytes: int) -> None:
    """Raises if the disk of `folder`, which need not exist yet, is too small."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        needed = f"{num_bytes / 1e9:.1f} GB"
        raise CheckpointError(f"{existing} has {free / 1e9:.1f} GB free, and the conversion needs {needed}; make room or write elsewhere")
