"""What a weight file is, by the names, shapes and dtypes in its header; its own name decides nothing but the expert.

`recognise(files)` reads one file, or the shards of one model, and says which model it is, in whose names, how it is
stored, and which steps turn it into a published state dict. `describe(path)` says so in sentences, for files and folders.
Nothing here reads more than headers, and the few bytes in which quantised layers describe themselves.
"""
from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kinograph.checkpoints import files as weight_files
from kinograph.checkpoints import formats, gguf_files
from kinograph.checkpoints.quantised import FORMAT, FP8, check_quantisation, dequantised, scales_of
from kinograph.checkpoints.storage import Step, unpack
from kinograph.config import MODELS, ModelSpec, VAEConfig
from kinograph.errors import CheckpointError, KinographError
from kinograph.models.wav2vec2 import module_names

# Models as `Components.place` names them; an expert has its own name.
TEXT_ENCODER, VAE_NAME = "text_encoder", "vae"
SPEECH_ENCODER, IMAGE_ENCODER = "speech_encoder", "image_encoder"
BESIDE_THE_EXPERTS = (TEXT_ENCODER, VAE_NAME, SPEECH_ENCODER, IMAGE_ENCODER)  # each is the kind of its file, too
TRANSFORMER, LORA, UNKNOWN = "transformer", "lora", "unknown"  # further kinds of file
PUBLISHED, DIFFUSERS, TRANSFORMERS, LLAMA = "published", "diffusers", "transformers", "llama.cpp"  # whose names
EMBEDDED_TOKENIZERS = ("spiece_model", "tokenizer_json")  # a tokenizer file's bytes, as a tensor beside a text encoder
SUFFIXES = (".safetensors", ".sft", ".gguf", ".pth", ".pt", ".bin", ".ckpt")
INDEX = ".index.json"
HIGH, LOW = "high_noise", "low_noise"

Header = Mapping[str, torch.Tensor]
Files = tuple[Path, ...]

# Tensors that tell the models apart. The first row that a header satisfies decides.
_SIGNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (TRANSFORMER, PUBLISHED, ("head.modulation", "patch_embedding.weight", "blocks.0.ffn.0.weight")),
    (TRANSFORMER, DIFFUSERS, ("scale_shift_table", "patch_embedding.weight", "blocks.0.ffn.net.0.proj.weight")),
    (VAE_NAME, PUBLISHED, ("decoder.head.0.gamma", "encoder.conv1.weight")),
    (VAE_NAME, DIFFUSERS, ("decoder.norm_out.gamma", "encoder.conv_in.weight")),
    (TEXT_ENCODER, PUBLISHED, ("token_embedding.weight", "blocks.0.attn.q.weight")),
    (TEXT_ENCODER, TRANSFORMERS, ("encoder.final_layer_norm.weight", "encoder.block.0.layer.0.SelfAttention.q.weight")),
    (TEXT_ENCODER, LLAMA, ("token_embd.weight", "enc.blk.0.attn_q.weight")),
    (SPEECH_ENCODER, PUBLISHED, ("wav2vec2.feature_projection.projection.weight",)),
    (IMAGE_ENCODER, PUBLISHED, ("visual.cls_embedding", "visual.patch_embedding.weight")),
)
# 2.2 nests its layers in levels.
_NESTED = ("encoder.downsamples.0.downsamples.", "encoder.down_blocks.0.resnets.")
# Transformers that are built on the same one, with more to them.
_RELATIVES = {
    "audio_injector.": "s2v-14B",
    "pose_patch_embedding.": "animate-14B",
    "vace_blocks.": "a VACE model",
    "img_emb.proj.": "an image-to-video model of Wan2.1",
    "condition_embedder.image_embedder.": "an image-to-video model of Wan2.1",
    "control_adapter.": "a control model",
}
_LORA = re.compile(r"\.lora_(A|B|up|down)\b|\.lora\.(up|down)\.|\.hada_|\.lokr_|\.diff(_b|_m)?$")
_BLOCK = re.compile(r"(?:blocks|encoder\.block|enc\.blk)\.(\d+)\.")
_EXPERT = re.compile(r"(?<![a-z])(high|low)(?=noise|[^a-z]|$)")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the files of one model hold."""

    files: Files
    kind: str  # TRANSFORMER, one of BESIDE_THE_EXPERTS, LORA or UNKNOWN
    names: str = ""  # whose: PUBLISHED, DIFFUSERS, TRANSFORMERS or LLAMA
    prefix: str = ""  # before the name of every weight
    version: str = ""  # of a VAE: "2.1" or "2.2"
    sizes: tuple[int, ...] = ()  # those that tell models of one kind apart; see `sizes_of`
    num_layers: int = 0
    storage: str  # such as "bfloat16", "fp8 with scales", "GGUF Q4_K"
    quantised: bool = False  # the weights are wider in memory than in the file
    expert: str | None = None  # that metadata or file name speak of: HIGH or LOW
    relative: str = ""  # what it is instead, if it is more than a transformer of the table
    num_parameters: int = 0
    embedded: tuple[str, ...] = ()  # which of EMBEDDED_TOKENIZERS the file has
    scales: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def models(self) -> tuple[str, ...]:
        """The rows of the model table that it belongs to."""
        return tuple(name for name, spec in MODELS.items() if fits(self, spec))

    def steps(self, vae: VAEConfig) -> tuple[Step, ...]:
        """What turns the tensors of the files into a published state dict; `vae` gives the sizes that a VAE's names depend on."""
        if self.kind == SPEECH_ENCODER:
            return (module_names, unpack)
        if self.kind == IMAGE_ENCODER:  # published in one file with a text tower, which nothing here reads
            return (formats.only_prefix("visual."), unpack)
        steps: list[Step] = [formats.without(self.embedded)] if self.embedded else []
        if self.prefix:
            steps.append(formats.without_prefix(self.prefix))
        if self.names == TRANSFORMERS:
            steps.append(formats.without_twin)
        steps.append(dequantised(self.scales))
        if self.names != PUBLISHED:
            steps.append(formats.renamed(formats.inverse(self._names(vae))))
        return (*steps, unpack)

    def _names(self, vae: VAEConfig) -> formats.Names:
        if self.kind == VAE_NAME:
            return formats.vae_names(vae)
        tables = {DIFFUSERS: formats.dit_names, TRANSFORMERS: formats.t5_names, LLAMA: formats.t5_gguf_names}
        return tables[self.names](self.num_layers)


def recognise(files: Iterable[Path]) -> Contents:
    """What `files`, which hold one model together, are. UNKNOWN is an answer; CheckpointError: they cannot be read."""
    files = tuple(files)
    _check_whole(files)
    full = {name: tensor for path in files for name, tensor in weight_files.describe(path).items()}
    words = {key: value for path in files for key, value in weight_files.metadata(path).items()}
    prefix = next((prefix for prefix in formats.PREFIXES if any(name.startswith(prefix) for name in full)), "")
    header = {name.removeprefix(prefix): tensor for name, tensor in full.items()}
    kind, names = _kind(header)
    if kind in (LORA, UNKNOWN, SPEECH_ENCODER, IMAGE_ENCODER):
        return Contents(files=files, kind=kind, names=names, storage=_storage(files, header), num_parameters=_count(header))
    check_quantisation(header, words, _layer_formats(files, header, prefix), where=_place(files))
    return Contents(
        files=files,
        kind=kind,
        names=names,
        prefix=prefix,
        version=_vae_version(header) if kind == VAE_NAME else "",
        sizes=sizes_of(kind, names, header),
        num_layers=_num_layers(header),
        storage=_storage(files, header),
        quantised=any(tensor.dtype in (*FP8, torch.int8) for tensor in header.values()) or _is_gguf(files),
        expert=_expert(files, words) if kind == TRANSFORMER else None,
        relative=next((what for sign, what in _RELATIVES.items() if any(name.startswith(sign) for name in header)), ""),
        num_parameters=_count(header),
        embedded=tuple(name for name in EMBEDDED_TOKENIZERS if name in header),
        scales=scales_of(header),
    )


def sizes_of(kind: str, names: str, header: Header) -> tuple[int, ...]:
    """Transformer: dim, in_dim, ffn_dim, num_layers. VAE: encoder width. Text encoder: vocabulary, dim, num_layers."""
    shape = {name: tensor.shape for name, tensor in header.items()}
    if kind == TRANSFORMER:
        ffn = "blocks.0.ffn.0.weight" if names == PUBLISHED else "blocks.0.ffn.net.0.proj.weight"
        dim, in_dim = shape["patch_embedding.weight"][:2]
        return (dim, in_dim, shape[ffn][0], _num_layers(header))
    if kind == VAE_NAME:
        return (shape["encoder.conv1.weight" if names == PUBLISHED else "encoder.conv_in.weight"][0],)
    embeddings = ("token_embedding.weight", "shared.weight", formats.T5_TWIN, "token_embd.weight")
    return (*next((shape[name] for name in embeddings if name in shape), ()), _num_layers(header))


def fits(contents: Contents, spec: ModelSpec) -> bool:
    """Whether the files are of the sizes of `spec`."""
    if contents.kind == TRANSFORMER:
        sizes = (spec.dit.dim, spec.dit.in_dim, spec.dit.ffn_dim, spec.dit.num_layers)
        return contents.relative == relative_of(spec) and contents.sizes == sizes
    if contents.kind == VAE_NAME:
        return contents.version == spec.vae.version and contents.sizes == (spec.vae.base_dim,)
    return contents.kind == TEXT_ENCODER and contents.sizes == (spec.text.vocab_size, spec.text.dim, spec.text.num_layers)


def relative_of(spec: ModelSpec) -> str:
    """What `Contents.relative` says of the transformers of `spec`: the published model whose kind they are, or ""."""
    return {"s2v": "s2v-14B", "animate": "animate-14B"}.get(spec.task, "")


# ---------------------------------------------------------------------------------------------- finding weight files


def model_files(path: Path) -> Files:
    """The files of the one model at `path`: a file, the index of shards, or a folder with either.

    Raises CheckpointError if there is none, if shards are missing, or if a folder has several.
    """
    if path.name.endswith(INDEX):
        return indexed_files(path)
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"there is no file {path}; check the path")
        return (path,)
    indexes = sorted(path.glob(f"*{INDEX}"))
    if len(indexes) == 1:
        return indexed_files(indexes[0])
    found = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
    found = [file for file in found if file.suffix == ".safetensors"] or found  # the same weights as .bin may lie beside them
    if len(found) != 1 or indexes:
        several = ", ".join(file.name for file in (indexes or found)[:3])
        what = f"several models ({several}, ...)" if several else "no weights"
        raise CheckpointError(f"{path} holds {what}; give the path of one weight file")
    return (found[0],)


def indexed_files(index: Path) -> Files:
    """The shards that an index names, all of them present."""
    if problem := small_file_problem(index):
        raise CheckpointError(problem)
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of weights; download it again") from error
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise CheckpointError(f"{index} names files outside its own folder, or none; download it again")
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of {len(names)} weight files ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); download them again"
        )
    return tuple(index.parent / name for name in names)


def all_models(folder: Path) -> list[Files]:
    """Every model in `folder` and the folders below: shards with an index together, other weight files each alone."""
    groups = [indexed_files(index) for index in sorted(folder.rglob(f"*{INDEX}"))]
    taken = {path for group in groups for path in group}
    alone = (path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path not in taken and path.is_file())
    return groups + [(path,) for path in alone]


def small_file_problem(path: Path) -> str | None:
    """For JSON files: the usual ways in which a download goes wrong."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        what = "a git-lfs pointer" if path.read_bytes().startswith(b"version https://git-lfs") else "empty or damaged"
        return f"{path} is {what}; download it again"
    return None


def read_settings(path: Path) -> dict[str, Any]:
    """The table in a JSON file; CheckpointError where it has none."""
    if problem := small_file_problem(path):
        raise CheckpointError(problem)
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is not a table of settings; download it again")
    return settings


# ------------------------------------------------------------------------------------------------------ in sentences


def describe(path: str | Path) -> list[str]:
    """What a weight file, or a folder of them, is: a line for each model in it."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"there is no file or folder {path}; check the path")
    if not path.is_dir():
        return [f"{path.name}: {summary(recognise(model_files(path)))}"]
    lines = [f"{path}: {_folder_kind(path)}"]
    for files in all_models(path):
        name = files[0].relative_to(path)
        label = str(name) if len(files) == 1 else f"{name.parent}{'/' if name.parent.name else ''} ({len(files)} files)"
        try:
            lines.append(f"{label}: {summary(recognise(files))}")
        except KinographError as error:
            lines.append(f"{label}: cannot be used: {error}")
    return lines


def summary(contents: Contents) -> str:
    """One sentence about the files of one model."""
    if contents.kind == LORA:
        return "a LoRA, which `kinograph lora check` describes"
    if contents.kind == UNKNOWN:
        return "weights of a model that this version does not know"
    names = {PUBLISHED: "the published names", DIFFUSERS: "the names of diffusers", TRANSFORMERS: "the names of transformers"}
    count = contents.num_parameters
    parts = [
        _what(contents),
        f"in {names.get(contents.names, 'the names of ' + contents.names)}" + (f" after {contents.prefix}" if contents.prefix else ""),
        contents.storage,
        f"{count / 1e9:.2f} billion parameters" if count >= 1e8 else f"{count:,} parameters",
        f"{sum(path.stat().st_size for path in contents.files) / 1e9:.2f} GB",
    ]
    if contents.embedded:
        parts.append("with its tokenizer")
    return ", ".join(parts)


def _what(contents: Contents) -> str:
    models = " or ".join(contents.models)
    if contents.kind == VAE_NAME:
        return f"the {contents.version} VAE" + (f" ({', '.join(contents.models)})" if models else " of no model in the table")
    if contents.kind == TEXT_ENCODER:
        return "a umT5 text encoder" + ("" if models else " of no model in the table")
    if contents.kind in (SPEECH_ENCODER, IMAGE_ENCODER):
        return {SPEECH_ENCODER: "a wav2vec2 speech encoder", IMAGE_ENCODER: "a CLIP image encoder"}[contents.kind]
    if contents.relative and not models:
        return f"the transformer of {contents.relative}"
    expert = {HIGH: "high-noise expert", LOW: "low-noise expert", None: "transformer"}[contents.expert]
    if models:
        return f"the {expert} of {models}"
    return f"a transformer of no model in the table (dim, in_dim, ffn_dim, layers: {', '.join(map(str, contents.sizes))})"


def _folder_kind(folder: Path) -> str:
    if (folder / "model_index.json").exists():
        return "a diffusers folder"
    if any((folder / sub / "diffusion_models").is_dir() for sub in ("", "models")):
        return "a ComfyUI tree"
    experts = ("", "high_noise_model", "low_noise_model")
    if any((folder / sub / "config.json").exists() for sub in experts):
        return "a folder in the published layout"
    return "a folder of weight files"


# ---------------------------------------------------------------------------------------------------------- details


def _check_whole(files: Sequence[Path]) -> None:
    if problems := [problem for problem in map(weight_files.file_problem, files) if problem]:
        more = f" (and {len(problems) - 1} more files of this model are damaged)" if len(problems) > 1 else ""
        raise CheckpointError(problems[0] + more)


def _kind(header: Header) -> tuple[str, str]:
    for kind, names, signs in _SIGNS:
        if all(sign in header for sign in signs):
            return kind, names
    return (LORA if any(_LORA.search(name) for name in header) else UNKNOWN), ""


def _num_layers(header: Header) -> int:
    return len({match[1] for match in map(_BLOCK.match, header) if match})


def _vae_version(header: Header) -> str:
    return "2.2" if any(name.startswith(_NESTED) for name in header) else "2.1"


def _count(header: Header) -> int:
    """Parameters; the second name of the token embedding does not count."""
    twin = formats.T5_TWIN if "shared.weight" in header else ""
    return sum(tensor.numel() for name, tensor in header.items() if tensor.dtype != torch.uint8 and name != twin)


def _is_gguf(files: Files) -> bool:
    return any(weight_files.file_format(path) == weight_files.GGUF for path in files)


def _storage(files: Files, header: Header) -> str:
    """How most of the weights are stored."""
    if _is_gguf(files):
        types = gguf_files.tensor_types(files[0])
        types.pop("F32", None)  # vectors
        return f"GGUF {types.most_common(1)[0][0] if types else 'F32'}"
    counted: Counter[torch.dtype] = Counter()
    for tensor in header.values():
        counted[tensor.dtype] += tensor.numel()
    if not counted:
        return "no tensors"
    dtype = counted.most_common(1)[0][0]
    name = str(dtype).removeprefix("torch.")
    if dtype in FP8:
        return f"{name} {'with' if scales_of(header) else 'without'} scales"
    return f"{name} with scales" if dtype == torch.int8 else name


def _layer_formats(files: Files, header: Header, prefix: str) -> dict[str, bytes]:
    """What quantised layers say about themselves, by the tensor's name; the only values that are read."""
    names = {prefix + name for name in header if name.endswith(FORMAT)}
    if not names:
        return {}
    pairs = (pair for path in files for pair in weight_files.read_tensors(path, only=names))
    return {name.removeprefix(prefix): bytes(tensor.tolist()) for name, tensor in pairs}


def _expert(files: Files, words: Mapping[str, str]) -> str | None:
    """The expert that the file's name, else its metadata, else its folder speak of, if they speak of one."""
    about = ("general.name", "modelspec.title", "kinograph.expert")
    texts = (files[0].stem, " ".join(words.get(key, "") for key in about), files[0].parent.name)
    for text in texts:
        found = set(_EXPERT.findall(text.lower()))
        if len(found) == 1:
            return {"high": HIGH, "low": LOW}[found.pop()]
    return None


def _place(files: Files) -> Path:
    return files[0] if len(files) == 1 else files[0].parent
