"""Where each model's weights are, in whatever layout, and whether they are the right ones. The published layout:

    config.json, diffusion_pytorch_model*.safetensors [+ .index.json]   one folder per expert (`Expert.folder`)
    Wan2.x_VAE.pth, models_t5_umt5-xxl-enc-bf16.pth                     or .safetensors of the same stem
    models_clip_...pth, wav2vec2-large-xlsr-53-english/                 image and speech encoder, for the models that have one
    google/umt5-xxl/                                                    tokenizer

Those below the first line may lie outside the folder, where several models share them: `ModelSpec.files` then begins with "../".
The others are in `diffusers_folder.py` and `comfyui_tree.py`; `Parts` replaces single models by files in any format.
Everything in `check_folder` is cheap: it reads headers, and compares them with models built without memory.
A model is named as `Components.place` names it: "text_encoder", "vae", "speech_encoder", "image_encoder", and each expert
by its own name.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from kinograph.checkpoints import comfyui_tree, diffusers_folder, wording
from kinograph.checkpoints.files import describe
from kinograph.checkpoints.recognise import (
    BESIDE_THE_EXPERTS,
    IMAGE_ENCODER,
    LORA,
    SPEECH_ENCODER,
    TEXT_ENCODER,
    TRANSFORMER,
    UNKNOWN,
    VAE_NAME,
    Contents,
    Files,
    indexed_files,
    model_files,
    read_settings,
    recognise,
    relative_of,
    small_file_problem,
)
from kinograph.checkpoints.storage import Pair, Step, unpack
from kinograph.checkpoints.tokenizer_files import SPIECE, TOKENIZER_JSON
from kinograph.config import MODELS, AnimateConfig, DiTConfig, Expert, ModelSpec, S2VConfig
from kinograph.errors import CheckpointError
from kinograph.models.dit import DiT
from kinograph.models.dit_animate import AnimateDiT
from kinograph.models.dit_s2v import S2VDiT
from kinograph.models.image_encoder import ImageEncoder
from kinograph.models.t5 import TextEncoder
from kinograph.models.vae import VAE
from kinograph.models.wav2vec2 import Wav2Vec2

CONFIG = "config.json"
DIT_FILE = "diffusion_pytorch_model.safetensors"
DIT_INDEX = f"{DIT_FILE}.index.json"
SPEECH_FILE = "model.safetensors"
TOKENIZER_FILE = TOKENIZER_JSON
# The sizes that config.json has. The others are the same for every published model.
CONFIG_KEYS = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "freq_dim", "text_len", "eps")
EXTRA_CONFIG_KEYS = ("text_dim", "patch_size")  # checked where present


@dataclass(frozen=True)
class Weights:
    """The files of one model and what they hold."""

    files: Files
    tensors: Mapping[str, torch.Tensor]  # on the meta device: names and shapes of the model's state dict, as `steps` give it
    steps: tuple[Step, ...]  # for `load_model`
    contents: Contents  # what the files were recognised as
    notes: tuple[str, ...] = ()  # what the user should know, in sentences

    def num_bytes(self, dtype: torch.dtype | None = None) -> int:
        """Memory that the weights take in `dtype`; None: in the dtype of the file."""
        return sum(tensor.numel() * (dtype or tensor.dtype).itemsize for tensor in self.tensors.values())


def model_names(spec: ModelSpec) -> tuple[str, ...]:
    """Every model of `spec`, in the order a run needs them."""
    given = [name for name, config in ((SPEECH_ENCODER, spec.speech_encoder), (IMAGE_ENCODER, spec.image_encoder)) if config is not None]
    return (TEXT_ENCODER, *given, *(expert.name for expert in spec.experts), VAE_NAME)


def model_factory(spec: ModelSpec, name: str) -> Callable[[], nn.Module]:
    """A function that builds the model called `name`, on the device that is the default when it is called."""
    if name == TEXT_ENCODER:
        return partial(TextEncoder, spec.text)
    if name == VAE_NAME:
        return partial(VAE, spec.vae)
    if name == SPEECH_ENCODER and spec.speech_encoder is not None:
        return partial(Wav2Vec2, spec.speech_encoder)
    if name == IMAGE_ENCODER and spec.image_encoder is not None:
        return partial(ImageEncoder, spec.image_encoder)
    if any(expert.name == name for expert in spec.experts):
        return partial(transformer_class(spec.dit), spec.dit)
    raise ValueError(f"{spec.name} has no model called {name!r}; it has {', '.join(model_names(spec))}")


def transformer_class(config: DiTConfig) -> type[DiT]:
    """The transformer that has these sizes."""
    return next((model for kind, model in ((S2VConfig, S2VDiT), (AnimateConfig, AnimateDiT)) if isinstance(config, kind)), DiT)


def bundled_folder(spec: ModelSpec) -> Path:
    """The checkpoint inside the package, for the models that ship with it."""
    if not spec.bundled:
        where = f"; get the weights from {spec.hub}" if spec.hub else ""
        raise CheckpointError(f"{spec.name} does not ship with Kinograph: give the folder of its checkpoint{where}")
    folder = Path(__file__).parents[1] / "nano" / spec.bundled
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing, although {spec.name} ships with Kinograph; install Kinograph again")
    return folder


def tokenizer_folder(spec: ModelSpec, folder: Path) -> Path:
    return folder / spec.files.tokenizer


def weight_files(spec: ModelSpec, folder: Path, name: str) -> tuple[Path, ...]:
    """The files of the model called `name`, whether whole or not; CheckpointError where the layout gives none."""
    if name == TEXT_ENCODER:
        return (_pth_or_safetensors(folder / spec.files.text_encoder),)
    if name == VAE_NAME:
        return (_vae_file(spec, folder),)
    if name == SPEECH_ENCODER:
        return (folder / spec.files.speech_encoder / SPEECH_FILE,)
    if name == IMAGE_ENCODER:
        return (_pth_or_safetensors(folder / spec.files.image_encoder),)
    expert = next(expert for expert in spec.experts if expert.name == name)
    return _dit_files(spec, folder, expert)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Models from elsewhere than the checkpoint folder: paths of a file, an index of shards, or a folder with one model.

    Each replaces the model that its name says, in any format. `transformer` is for models with one expert.
    """

    high_noise: str | Path | None = None
    low_noise: str | Path | None = None
    transformer: str | Path | None = None
    vae: str | Path | None = None
    text_encoder: str | Path | None = None
    speech_encoder: str | Path | None = None
    image_encoder: str | Path | None = None
    tokenizer: str | Path | None = None  # a folder, a tokenizer.json, a spiece.model, or a file with either inside

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))

    def path(self, spec: ModelSpec, name: str) -> Path | None:
        """What was given for the model of `spec` called `name`."""
        value = getattr(self, wording.flag_of(spec, name).removeprefix("--"))
        return None if value is None else Path(value)

    def check(self, spec: ModelSpec) -> None:
        """CheckpointError for a part that `spec` does not have."""
        known = {wording.flag_of(spec, name).removeprefix("--") for name in model_names(spec)} | {"tokenizer"}
        for field in fields(self):
            if getattr(self, field.name) is not None and field.name not in known:
                right = ", ".join(wording.flag_of(spec, expert.name) for expert in spec.experts)
                raise CheckpointError(f"{spec.name} has no part called {field.name}; its transformers are given with {right}")


@dataclass(frozen=True)
class Checkpoint:
    """The models of a spec, found and checked, with their tokenizer."""

    weights: dict[str, Weights]
    tokenizer: Path  # what `tokenizer_files.open_tokenizer` opens
    notes: tuple[str, ...]  # what the user should know, in sentences


def open_checkpoint(spec: ModelSpec, folder: str | Path | None, *, parts: Parts | None = None) -> Checkpoint:
    """Every model of `spec`, after every check that needs no weight in memory.

    `folder` has the published layout, that of diffusers, or single files as ComfyUI has them; None if `parts` has
    everything. Raises one CheckpointError with a sentence for each problem: a folder or file that is missing, empty, cut
    off or not what its name says; weights of another model; tensors that are missing, unexpected or of another shape.
    """
    parts = parts or Parts()
    parts.check(spec)
    source = open_source(spec, folder)
    notes = source.check([name for name in model_names(spec) if parts.path(spec, name) is None])
    weights: dict[str, Weights] = {}
    problems: list[str] = []
    for name in model_names(spec):
        try:
            part = parts.path(spec, name)
            weights[name] = check_model(spec, name, source.files(name) if part is None else model_files(part))
        except CheckpointError as error:
            problems.append(str(error))
    try:
        tokenizer = _tokenizer(source, parts, weights.get(TEXT_ENCODER))
        _check_tokenizer(tokenizer)
    except CheckpointError as error:
        problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    return Checkpoint(weights, tokenizer, (*notes, *(note for found in weights.values() for note in found.notes)))


def check_folder(spec: ModelSpec, folder: str | Path | None, *, parts: Parts | None = None) -> dict[str, Weights]:
    """Model name -> its weights, as `open_checkpoint` finds them."""
    return open_checkpoint(spec, folder, parts=parts).weights


def check_model(spec: ModelSpec, name: str, files: Files) -> Weights:
    """The checks of `check_folder` for one model in `files`."""
    contents = recognise(files)
    where = files[0] if len(files) == 1 else files[0].parent
    what = f"the {wording.kind_of(spec, name)} of {spec.name}"
    if other := _another_kind(spec, name, contents):
        raise CheckpointError(f"{where} does not hold {what}: {other}")
    steps = (unpack,) if contents.kind == UNKNOWN else contents.steps(spec.vae)
    found = described(files, steps=steps)
    if difference := compare(expected_tensors(model_factory(spec, name)), found):
        raise CheckpointError(f"{where} does not hold {what}: {difference}{_remedy(spec, contents, found)}")
    return Weights(files, found, steps, contents, _notes(spec, name, contents))


def described(files: Iterable[Path], *, steps: Sequence[Step] = (unpack,)) -> dict[str, torch.Tensor]:
    """What loading `files` through `steps` gives, on the meta device."""
    stream: Iterable[Pair] = (pair for path in files for pair in describe(path).items())
    for step in steps:
        stream = step(stream)
    return dict(stream)


def expected_tensors(factory: Callable[[], nn.Module]) -> dict[str, torch.Tensor]:
    """The state dict of the model that `factory` builds, on the meta device."""
    with torch.device("meta"):
        return factory().state_dict()


def compare(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], *, limit: int = 3) -> str:
    """How the tensors found differ from those expected, the first `limit` names of each kind; "" if they do not."""
    misshaped = [
        f"{name} is {list(found[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    kinds = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": misshaped,
    }
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:limit])}{', ...' if len(names) > limit else ''})" for kind, names in kinds.items() if names
    )


# -------------------------------------------------------------------------------------------------------- layouts


class Source(Protocol):
    """A checkpoint in one of the layouts."""

    def check(self, needed: Sequence[str]) -> tuple[str, ...]:
        """Notes; raises where the folder is of another model, or lacks models `needed` as a whole: the rest would follow."""

    def files(self, name: str) -> Files:
        """The files of the model called `name`; raises where there are none."""

    def tokenizer(self) -> Path:
        """A folder or file that `tokenizer_files.open_tokenizer` opens; raises where there is none."""


def open_source(spec: ModelSpec, folder: str | Path | None) -> Source:
    """The folder in its layout, recognised by what is in it."""
    if folder is None:
        return NoFolder(spec)
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"the checkpoint folder {str(folder)!r} {what}; give the one that holds the weights of {spec.name}")
    if diffusers_folder.is_diffusers(folder):
        return DiffusersFolder(spec, folder)
    if comfyui_tree.subfolders(folder) or _has_single_files(folder):
        return ComfyuiTree(spec, folder)
    return PublishedFolder(spec, folder)


@dataclass(frozen=True)
class PublishedFolder:
    spec: ModelSpec
    folder: Path

    def check(self, needed: Sequence[str]) -> tuple[str, ...]:
        _check_experts(self.spec, self.folder, [expert for expert in self.spec.experts if expert.name in needed])
        return ()

    def files(self, name: str) -> Files:
        return weight_files(self.spec, self.folder, name)

    def tokenizer(self) -> Path:
        return tokenizer_folder(self.spec, self.folder)


@dataclass(frozen=True)
class DiffusersFolder:
    spec: ModelSpec
    folder: Path

    def check(self, needed: Sequence[str]) -> tuple[str, ...]:
        return diffusers_folder.check(self.spec, self.folder, needed)

    def files(self, name: str) -> Files:
        return diffusers_folder.files(self.spec, self.folder, name)

    def tokenizer(self) -> Path:
        return self.folder / diffusers_folder.TOKENIZER


class ComfyuiTree:
    def __init__(self, spec: ModelSpec, folder: Path) -> None:
        self.spec = spec
        self.tree = comfyui_tree.Tree(folder)

    def check(self, needed: Sequence[str]) -> tuple[str, ...]:
        return ()

    def files(self, name: str) -> Files:
        return self.tree.files(self.spec, name)

    def tokenizer(self) -> Path:
        found = self.tree.tokenizer(self.spec)
        if found is None:
            raise CheckpointError(f"{self.tree.folder} has no tokenizer; give the folder of one with --tokenizer")
        return found


@dataclass(frozen=True)
class NoFolder:
    """Every model is given on its own."""

    spec: ModelSpec

    def check(self, needed: Sequence[str]) -> tuple[str, ...]:
        if needed:
            flags = ", ".join(wording.flag_of(self.spec, name) for name in needed)
            raise CheckpointError(f"without a checkpoint folder, {self.spec.name} also needs {flags}; give them, or --ckpt_dir")
        return ()

    def files(self, name: str) -> Files:
        raise AssertionError(f"{name} was asked for after a check that found it missing")

    def tokenizer(self) -> Path:
        raise CheckpointError("the text encoder's file has no tokenizer inside; give the folder of one with --tokenizer")


def _has_single_files(folder: Path) -> bool:
    """Whether weight files lie loose in a folder that has no transformer in the published layout."""
    experts = {expert.folder for row in MODELS.values() for expert in row.experts}
    published = [folder / sub / name for sub in experts for name in (CONFIG, DIT_FILE, DIT_INDEX)]
    if any(path.exists() for path in published) or any((folder / sub).is_dir() for sub in experts - {"."}):
        return False
    return any(path.suffix in (".safetensors", ".gguf") for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------- the published layout


def _pth_or_safetensors(path: Path) -> Path:
    alternative = path.with_suffix(".safetensors")
    return alternative if not path.exists() and alternative.exists() else path


def _vae_file(spec: ModelSpec, folder: Path) -> Path:
    path = _pth_or_safetensors(folder / spec.files.vae)
    others = {Path(row.files.vae).name for row in MODELS.values()} - {path.name}
    if not path.exists() and (present := [name for name in sorted(others) if (folder / name).exists()]):
        raise CheckpointError(f"{folder} has {present[0]} but not {spec.files.vae}; {wording.vae_rule(spec)}")
    return path


def _dit_files(spec: ModelSpec, folder: Path, expert: Expert) -> Files:
    where = folder / expert.folder
    if (where / DIT_INDEX).exists():
        return indexed_files(where / DIT_INDEX)
    if (where / DIT_FILE).exists():
        return (where / DIT_FILE,)
    guess = guess_model(folder)
    raise CheckpointError(
        f"{where} has neither {DIT_INDEX} nor {DIT_FILE}; " + (
            wording.use_task(guess) if guess and guess != spec.name
            else f"give the folder of {spec.name} or download it again{wording.origin(spec)}"
        )
    )  # fmt: skip


def _check_experts(spec: ModelSpec, folder: Path, experts: Sequence[Expert]) -> None:
    """Raises where the folder is of another model or lacks an expert: whatever else differs would follow from that."""
    folders = [expert.folder for expert in experts]
    missing = [name for name in folders if not (folder / name).is_dir()]
    if missing:
        guess = guess_model(folder)
        both = " and ".join(expert.folder for expert in spec.experts)
        raise CheckpointError(
            f"{folder} lacks {' and '.join(missing)}: {spec.name} needs both experts, {both}; "
            + (wording.use_task(guess) if guess and guess != spec.name else f"download it again{wording.origin(spec)}")
        )
    for name in folders:
        _check_config(spec, folder / name)


def _tokenizer(source: Source, parts: Parts, encoder: Weights | None) -> Path:
    """The tokenizer given, else the one inside the text encoder given, else the folder's."""
    if parts.tokenizer is not None:
        return Path(parts.tokenizer)
    if parts.text_encoder is not None and encoder is not None and encoder.contents.embedded:
        return encoder.files[0]
    return source.tokenizer()


def _check_tokenizer(source: Path) -> None:
    has_spiece = (source / SPIECE).exists()
    path = source if source.suffix else source / TOKENIZER_FILE
    if not path.exists() and not has_spiece:
        raise CheckpointError(f"the tokenizer {path} is missing; download its folder again")
    if path.exists() and path.suffix == ".json" and (problem := small_file_problem(path)):
        raise CheckpointError(problem)


# ------------------------------------------------------------------------------------------- recognising a model


def config_json(spec: ModelSpec) -> dict[str, Any]:
    """config.json as it belongs beside the weights of `spec`."""
    sizes = {key: getattr(spec.dit, key) for key in (*CONFIG_KEYS, *EXTRA_CONFIG_KEYS)}
    return {"_class_name": "WanModel", "model_type": spec.model_type, **sizes}


def guess_model(folder: Path) -> str | None:
    """The model of the table whose transformers lie in `folder`, in whatever layout; None if that is unclear."""
    if diffusers_folder.is_diffusers(folder):
        return diffusers_folder.guess_model(folder)
    for where in (folder, *(folder / name for name in ("high_noise_model", "low_noise_model"))):
        guess = _guess_from_config(where / CONFIG)
        if guess:
            return guess
    return comfyui_tree.guess_model(folder) if comfyui_tree.subfolders(folder) else None


def _guess_from_config(path: Path) -> str | None:
    try:
        config = read_settings(path)
    except (CheckpointError, OSError):
        return None
    rows = [row for row in MODELS.values() if not _contradictions(row.dit, config)]
    rows.sort(key=lambda row: row.model_type != config.get("model_type"))
    return rows[0].name if rows and "dim" in config else None


def _contradictions(dit: DiTConfig, config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, in the file, in the table) of sizes that differ. Keys that a file lacks, or has besides, are tolerated."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    pairs = ((key, config[key], plain(getattr(dit, key))) for key in (*CONFIG_KEYS, *EXTRA_CONFIG_KEYS) if key in config)
    return [(key, found, expected) for key, found, expected in pairs if found != expected]


def _check_config(spec: ModelSpec, where: Path) -> None:
    path = where / CONFIG
    if not path.exists():
        return  # the shapes in the weight files tell as much
    config = read_settings(path)
    differences = _contradictions(spec.dit, config)
    guess = _guess_from_config(path)
    if differences:
        key, found, expected = differences[0]
        raise CheckpointError(
            f"{path} has {key} {found}, but {spec.name} has {key} {expected}; "
            + (wording.use_task(guess) if guess else f"give the folder of {spec.name} or download it again{wording.origin(spec)}")
        )
    published = {row.model_type for row in MODELS.values()}
    model_type = config.get("model_type", spec.model_type)
    if model_type != spec.model_type and model_type in published:
        raise CheckpointError(
            f"{path} has model_type {model_type!r}, but {spec.name} has {spec.model_type!r}; {wording.use_task(guess or model_type)}"
        )


def _guess_from_tensors(found: Mapping[str, torch.Tensor]) -> str | None:
    patch, ffn = found.get("patch_embedding.weight"), found.get("blocks.0.ffn.0.weight")
    if patch is None or ffn is None or patch.ndim != 5 or ffn.ndim != 2:
        return None
    if any(name.startswith(("audio_injector.", "pose_patch_embedding.")) for name in found):
        return None
    num_layers = len({name.split(".")[1] for name in found if name.startswith("blocks.")})
    sizes = (patch.shape[0], patch.shape[1], ffn.shape[0], num_layers)
    rows = (row for row in MODELS.values() if (row.dit.dim, row.dit.in_dim, row.dit.ffn_dim, row.dit.num_layers) == sizes)
    return next((row.name for row in rows), None)


# -------------------------------------------------------------------------------------------------------- wording


_ARTICLES = {
    TEXT_ENCODER: "a text encoder",
    VAE_NAME: "a VAE",
    SPEECH_ENCODER: "a speech encoder",
    IMAGE_ENCODER: "an image encoder",
    TRANSFORMER: "a transformer",
}


def _another_kind(spec: ModelSpec, name: str, contents: Contents) -> str | None:
    """What the files are instead, with the remedy, if they are not even of the kind wanted."""
    kind = name if name in BESIDE_THE_EXPERTS else TRANSFORMER
    if contents.kind == LORA:
        return "this is a LoRA, which changes a model and is none; give it with --lora"
    if contents.kind not in (kind, UNKNOWN):
        return f"this is {_ARTICLES[contents.kind]}; give the right file with {wording.flag_of(spec, name)}"
    if kind == VAE_NAME and contents.version not in ("", spec.vae.version):
        return f"this is a {contents.version} VAE, and {wording.vae_rule(spec)}"
    if contents.relative and contents.relative != relative_of(spec):
        task = f"; use --task {contents.relative}" if contents.relative in MODELS else "; use a file of the model asked for"
        return f"this is the transformer of {contents.relative}{task}"
    return None


def _notes(spec: ModelSpec, name: str, contents: Contents) -> tuple[str, ...]:
    notes = []
    if contents.expert and name in {expert.name for expert in spec.experts} and len(spec.experts) > 1 and contents.expert != name:
        notes.append(f"{contents.files[0].name} is used as the {name} expert, although it calls itself {contents.expert}")
    if "without scales" in contents.storage:
        notes.append(f"{contents.files[0].name} has fp8 weights without scales: they are used as they were rounded")
    return tuple(notes)


def _remedy(spec: ModelSpec, contents: Contents, found: Mapping[str, torch.Tensor]) -> str:
    guess = _guess_from_tensors(found) if contents.kind == TRANSFORMER else None
    if guess and guess != spec.name:
        return f"; {wording.use_task(guess)}"
    return f"; download it again{wording.origin(spec)}"
