"""LoRA files: every spelling of a key, to (parameter of the published model, what is added to it).

    W' = W + strength * (alpha / rank) * up @ down      down [rank, in], up [out, rank]; no alpha: alpha = rank
    W' = W + strength * difference                      also of biases, norms and modulation

| family     | example                                                                                        |
|------------|------------------------------------------------------------------------------------------------|
| comfyui    | diffusion_model.blocks.0.self_attn.q.lora_down.weight, .lora_up.weight, .alpha; or lora_A, lora_B |
| kohya      | lora_unet_blocks_0_self_attn_q.lora_down.weight: dots of the path written as underscores       |
| fun        | lora_unet__blocks_0_self_attn_q...                                                             |
| diffusers  | transformer.blocks.0.attn1.to_q.lora_A.weight; transformer_2. is the low-noise expert          |
| peft       | base_model.model.blocks.0.self_attn.q.lora_A.default.weight                                    |
| diffsynth  | blocks.0.self_attn.q.lora_A.default.weight; or pipe.dit., and pipe.dit2. for low noise         |
| lycoris    | lycoris_blocks_0_attn1_to_q.lora_down.weight                                                   |
| differences| MODULE.diff, MODULE.diff_b (bias), BLOCK.diff_m (modulation), under any of the prefixes        |

A flattened path cannot be split at its underscores ("self_attn_norm_q"), so the spellings of the model's own parameters
are made and looked up, not the other way round. Prefix and spelling of the path are independent of each other.
"""
from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kinograph.checkpoints.files import file_problem, metadata, read_tensors
from kinograph.checkpoints.formats import dit_names
from kinograph.checkpoints.layout import expected_tensors, model_factory
from kinograph.config import MODELS, ModelSpec
from kinograph.errors import CheckpointError

HIGH, LOW = "high_noise", "low_noise"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_METADATA = "lora_adapter_metadata"

Shapes = Mapping[str, Sequence[int]]
"""Name of a parameter -> its shape. A linear's weight is [out, in], however it is stored."""


# ------------------------------------------------------------------------------------------------ reading one key

DOWN, UP, ALPHA, DIFFERENCE, BIAS, MODULATION = "down", "up", "alpha", "diff", "diff_b", "diff_m"

_ROLES = {
    DOWN: r"lora_down\.weight|lora_A(?:\.[^.]+)?\.weight|lora\.down\.weight",
    UP: r"lora_up\.weight|lora_B(?:\.[^.]+)?\.weight|lora\.up\.weight",
    ALPHA: r"alpha",
    DIFFERENCE: r"diff|w_norm",  # the norm layers of LyCORIS are differences too
    BIAS: r"diff_b|b_norm",
    MODULATION: r"diff_m",
}
_KEY = re.compile(r"(?P<path>.+?)\.(?:" + "|".join(f"(?P<{role}>{pattern})" for role, pattern in _ROLES.items()) + ")")

# Longest first, so that none hides another. The second value names the family, the third the expert it is bound to.
_PREFIXES: tuple[tuple[str, str, str | None], ...] = (
    ("base_model.model.", "peft", None),
    ("model.diffusion_model.", "comfyui", None),
    ("diffusion_model.", "comfyui", None),
    ("transformer_2.", "diffusers", LOW),
    ("transformer.", "diffusers", HIGH),
    ("pipe.dit2.", "diffsynth", LOW),
    ("pipe.dit.", "diffsynth", HIGH),
    ("lora_unet__", "fun", None),
    ("lora_unet_", "kohya", None),
    ("lora_transformer_", "kohya", None),
    ("lycoris_", "lycoris", None),
)

_REFUSED = {
    "LoHa": r"\.hada_",
    "LoKr": r"\.lokr_",
    "DoRA": r"\.dora_scale|\.lora_magnitude_vector",
    "OFT": r"\.b?oft_",
    "LoCon with a middle factor": r"\.lora_mid\.",
    "LoRA with a bias": r"\.lora_B(\.[^.]+)?\.bias",
}
_TEXT_ENCODER = re.compile(r"(base_model\.model\.)?(lora_te\d*_|lycoris_te\d*_|text_encoders?(_\d)?\.|cond_stage_model\.)")
# The image input of Wan2.1, by its published and its diffusers names, with dots or flattened.
_WAN21_IMAGE = re.compile(r"(?:^|[._])(img_emb|k_img|v_img|image_embedder|add_k_proj|add_v_proj|norm_added_k)(?:[._]|$)")


@dataclass(frozen=True, kw_only=True)
class LoraKey:
    """What the name of one tensor says."""

    name: str
    family: str
    path: str  # of a module, as this file spells it, without the prefix
    role: str  # DOWN, UP, ALPHA, DIFFERENCE, BIAS or MODULATION
    expert: str | None  # of the transformer that the prefix names; "transformer." alone does not say which expert is meant


def parse_key(name: str) -> LoraKey | None:
    """The parts of a key; None if it is none of a LoRA. Whether the path exists is for `match` to say."""
    found = _KEY.fullmatch(name)
    if found is None:
        return None
    path, family, expert = found["path"], "diffsynth", None
    for prefix, known, bound in _PREFIXES:
        if path.startswith(prefix):
            path, family, expert = path.removeprefix(prefix), known, bound or expert
    return LoraKey(name=name, family=family, path=path, role=found.lastgroup or "", expert=expert)


def refused_kind(names: Iterable[str]) -> str | None:
    """The name of a method among `names` that is not a LoRA and cannot be applied as one."""
    kinds = ((kind, re.compile(pattern)) for kind, pattern in _REFUSED.items())
    names = tuple(names)
    return next((kind for kind, pattern in kinds if any(pattern.search(name) for name in names)), None)


# ------------------------------------------------------------------------------------------- spellings of a model

def spellings(names: Iterable[str]) -> dict[str, str]:
    """Every spelling of every module with a weight or a modulation among the parameters `names` -> its published path."""
    names = tuple(names)
    blocks = [int(name.split(".")[1]) for name in names if name.startswith("blocks.")]
    diffusers = dit_names(1 + max(blocks, default=-1))
    table: dict[str, str] = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        if leaf == "modulation":
            table |= {path: path, _flat(path): path}  # BLOCK.diff_m
            path = name
        elif leaf != "weight":
            continue
        for spelling in (path, diffusers.get(path, path)):
            table |= {spelling: path, _flat(spelling): path}
    return table


def _flat(path: str) -> str:
    return path.replace(".", "_")


# --------------------------------------------------------------------------------------------------- whole files


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """(alpha / rank) * up @ down, for a weight."""

    parameter: str
    down: str  # names of the tensors in the file
    up: str
    rank: int
    alpha: float | None
    expert: str | None = None  # None: for any

    @property
    def factor(self) -> float:
        """alpha / rank; 1 where the file has no alpha."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A tensor to be added as it is."""

    parameter: str
    name: str
    expert: str | None = None


Change = LowRank | Difference


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A change whose shape is that of another model."""

    key: str
    parameter: str
    found: tuple[int, ...]
    expected: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.parameter} is {list(self.found)} there and {list(self.expected)} here"


@dataclass(frozen=True, kw_only=True)
class LoraContents:
    """What a file would do to one model."""

    families: tuple[str, ...]  # most frequent first
    changes: tuple[Change, ...]
    misfits: tuple[Misfit, ...] = ()
    unmatched: tuple[str, ...] = ()  # keys that nothing in the model answers to
    wan21_image: tuple[str, ...] = ()  # keys of the image input of Wan2.1, where the model has none: those of animation do
    text_encoder: tuple[str, ...] = ()  # keys for a text encoder

    @property
    def low_rank(self) -> tuple[LowRank, ...]:
        return tuple(change for change in self.changes if isinstance(change, LowRank))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Distinct ranks, most frequent first."""
        return _by_frequency(change.rank for change in self.low_rank)

    @property
    def alphas(self) -> tuple[float | None, ...]:
        """Distinct alphas, most frequent first; None stands for an alpha that the file lacks."""
        return _by_frequency(change.alpha for change in self.low_rank)

    @property
    def fits(self) -> bool:
        return bool(self.changes) and not self.misfits and not self.unmatched


@dataclass(frozen=True)
class AdapterSettings:
    """What PEFT keeps beside the weights: the alphas, which its keys do not have."""

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False  # the factor is alpha / sqrt(rank)
    use_dora: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> AdapterSettings:
        return cls(
            alpha=values.get("lora_alpha"),
            alpha_pattern=values.get("alpha_pattern") or {},
            use_rslora=bool(values.get("use_rslora")),
            use_dora=bool(values.get("use_dora")),
        )

    def alpha_of(self, path: str, rank: int) -> float | None:
        """The alpha for the module that the file spells `path`, such that the factor is alpha / rank."""
        alpha = next(
            (value for pattern, value in self.alpha_pattern.items() if re.fullmatch(rf"(.*\.)?({pattern})", path)), self.alpha
        )
        return None if alpha is None else float(alpha) * (math.sqrt(rank) if self.use_rslora else 1.0)


@dataclass(frozen=True, kw_only=True)
class LoraTensors:
    """A file as it is: tensors backed by the file, and the metadata of its header."""

    path: Path
    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    adapter_config: Mapping[str, Any] = field(default_factory=dict)  # of the adapter_config.json that PEFT writes beside it

    def settings(self, expert: str | None) -> AdapterSettings:
        """What PEFT or diffusers recorded for the transformer of `expert` (None or HIGH: the first)."""
        try:
            recorded = json.loads(self.metadata.get(ADAPTER_METADATA, "{}"))
        except ValueError as error:
            raise CheckpointError(f"the {ADAPTER_METADATA} of {self.path} is damaged; save or download it again") from error
        prefix = "transformer_2." if expert == LOW else "transformer."
        own = {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}
        return AdapterSettings.of(own or recorded or self.adapter_config)


def read_lora(path: str | Path) -> LoraTensors:
    """A LoRA file, or the folder that PEFT or diffusers saved one in. Raises CheckpointError if it is none, or damaged."""
    path = _weight_file(Path(path))
    if problem := file_problem(path):
        raise CheckpointError(problem)
    tensors = dict(read_tensors(path))
    beside = path.parent / ADAPTER_CONFIG
    # The folder may hold LoRAs of other makers too; PEFT's own file name says that the config belongs to it.
    has_config = path.stem == "adapter_model" and beside.is_file()
    config = json.loads(beside.read_text(encoding="utf-8")) if has_config else {}
    lora = LoraTensors(path=path, tensors=tensors, metadata=metadata(path), adapter_config=config)
    _refuse_other_methods(lora)
    return lora


def match(lora: LoraTensors, shapes: Shapes, *, experts: Sequence[str] = (HIGH, LOW)) -> LoraContents:
    """What `lora` changes in a model with parameters of `shapes`; `experts` are the names of that model's experts.

    Raises CheckpointError for a file that is half there. Keys without a place are listed in the result, not refused.
    """
    keys = [key for key in map(parse_key, lora.tensors) if key is not None]
    matcher = _Matcher(lora, shapes, keys, experts)
    known = {key.name for key in keys}
    for key in keys:
        matcher.place(key)
    stray = [name for name in lora.tensors if name not in known]
    text = tuple(name for name in stray if _TEXT_ENCODER.match(name))
    families = _by_frequency(key.family for key in keys if not _TEXT_ENCODER.match(key.name))
    return matcher.contents(families, unmatched=[name for name in stray if name not in text], text_encoder=text)


class _Matcher:
    """Gathers the keys of one file by the parameter that they change."""

    def __init__(self, lora: LoraTensors, shapes: Shapes, keys: Sequence[LoraKey], experts: Sequence[str]) -> None:
        self.lora, self.shapes, self.experts = lora, shapes, experts
        self.paths = spellings(shapes)
        self.settings = {expert: lora.settings(expert) for expert in (None, HIGH, LOW)}
        # "transformer." is what diffusers writes for either expert, unless the file holds both.
        self.holds_both = any(key.expert == LOW for key in keys) and any(key.expert == HIGH for key in keys)
        self.pairs: dict[tuple[str | None, str], dict[str, LoraKey]] = {}  # (expert, parameter) -> role -> key
        self.differences: dict[tuple[str | None, str], LoraKey] = {}
        self.unmatched: list[str] = []
        self.wan21_image: list[str] = []
        self.text_encoder: list[str] = []

    def place(self, key: LoraKey) -> None:
        expert = key.expert if self.holds_both or key.expert == LOW else None
        parameter = self.parameter(key)
        if _TEXT_ENCODER.match(key.name):
            self.text_encoder.append(key.name)
        elif parameter is None and _WAN21_IMAGE.search(key.path):
            self.wan21_image.append(key.name)
        elif parameter is None or (expert is not None and expert not in self.experts):
            self.unmatched.append(key.name)
        elif key.role in (DOWN, UP, ALPHA):
            self._once(self.pairs.setdefault((expert, parameter), {}), key.role, key)
        else:
            self._once(self.differences, (expert, parameter), key)

    def parameter(self, key: LoraKey) -> str | None:
        path = self.paths.get(key.path)
        if path is None:
            return None
        leaf = {BIAS: "bias", MODULATION: "modulation"}.get(key.role, "weight")
        name = path if key.role == DIFFERENCE and path in self.shapes else f"{path}.{leaf}"
        return name if name in self.shapes else None

    def _once(self, table: dict[Any, LoraKey], place: Any, key: LoraKey) -> None:
        if place in table:
            raise CheckpointError(
                f"{self.lora.path} has two tensors for one place, {table[place].name} and {key.name}; save one adapter in a file"
            )
        table[place] = key

    def contents(self, families: tuple[str, ...], *, unmatched: Sequence[str], text_encoder: Sequence[str]) -> LoraContents:
        changes: list[Change] = []
        misfits: list[Misfit] = []
        for change, misfit in (*self._low_rank(), *self._plain()):
            if misfit is None:
                changes.append(change)
            else:
                misfits.append(misfit)
        return LoraContents(
            families=families,
            changes=tuple(changes),
            misfits=tuple(misfits),
            unmatched=(*self.unmatched, *unmatched),
            wan21_image=tuple(self.wan21_image),
            text_encoder=(*self.text_encoder, *text_encoder),
        )

    def _low_rank(self) -> Iterator[tuple[Change, Misfit | None]]:
        for (expert, parameter), keys in self.pairs.items():
            if DOWN not in keys or UP not in keys:
                present = next(iter(keys.values())).name
                raise CheckpointError(f"{self.lora.path} is incomplete: {present} is without its partner; download it again")
            down, up = (self.lora.tensors[keys[role].name] for role in (DOWN, UP))
            rank = down.shape[0]
            alpha = self.lora.tensors[keys[ALPHA].name].item() if ALPHA in keys else None
            if alpha is None:
                alpha = self.settings[expert].alpha_of(keys[DOWN].path, rank)
            if math.prod(up.shape[1:]) != rank:
                raise CheckpointError(f"{self.lora.path} is damaged: {keys[DOWN].name} has rank {rank}, {keys[UP].name} {up.shape[1]}")
            # Of a convolution, the factor `down` has the kernel as trailing axes, and `up` has ones there.
            found, expected = (up.shape[0], *down.shape[1:]), tuple(self.shapes[parameter])
            yield (
                LowRank(parameter=parameter, down=keys[DOWN].name, up=keys[UP].name, rank=rank, alpha=alpha, expert=expert),
                None if found == expected else Misfit(key=keys[DOWN].name, parameter=parameter, found=found, expected=expected),
            )

    def _plain(self) -> Iterator[tuple[Change, Misfit | None]]:
        for (expert, parameter), key in self.differences.items():
            found, expected = tuple(self.lora.tensors[key.name].shape), tuple(self.shapes[parameter])
            same = _without_ones(found) == _without_ones(expected)
            misfit = None if same else Misfit(key=key.name, parameter=parameter, found=found, expected=expected)
            yield Difference(parameter=parameter, name=key.name, expert=expert), misfit


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _by_frequency(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(value for value, _ in Counter(values).most_common())


def _weight_file(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(f"the LoRA {str(path)!r} does not exist; check the path")
    if not path.is_dir():
        return path
    names = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
    candidates = [path / name for name in names if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
    if len(candidates) != 1:
        found = ", ".join(candidate.name for candidate in candidates[:3]) or "none"
        raise CheckpointError(f"{path} is a folder; give the LoRA file inside it (found: {found})")
    return candidates[0]


def _refuse_other_methods(lora: LoraTensors) -> None:
    kind = refused_kind(lora.tensors)
    if kind is None and any(lora.settings(expert).use_dora for expert in (HIGH, LOW)):
        kind = "DoRA"
    if kind is not None:
        raise CheckpointError(f"{lora.path} is a {kind}, which this version cannot apply; use a plain LoRA (lora_down and lora_up)")
    if not any(parse_key(name) for name in lora.tensors):
        whole = any(name.endswith("patch_embedding.weight") for name in lora.tensors)
        raise CheckpointError(
            f"{lora.path} is not a LoRA: it {'holds a whole model' if whole else 'has no LoRA keys'} (first key: "
            f"{next(iter(lora.tensors), 'none')}); give a file with lora_down and lora_up, or lora_A and lora_B"
        )


# ------------------------------------------------------------------------------------------------ what is it for


@dataclass(frozen=True)
class ExpertGuess:
    """Which expert a file was made for, and what says so."""

    expert: str
    because: str


_EXPERT_WORDS = {
    HIGH: re.compile(r"(?<![a-z])high(?![a-z])|(?<![a-z])high[-_ ]?noise"),
    LOW: re.compile(r"(?<![a-z])low(?![a-z])|(?<![a-z])low[-_ ]?noise"),
}
_TITLES = ("modelspec.title", "ss_output_name", "ss_training_comment", "name")


def guess_expert(lora: LoraTensors) -> ExpertGuess | None:
    """By key prefix, file name, metadata or folder name; None where nothing, or both, are named. The weights do not tell."""
    bound = {key.expert for key in map(parse_key, lora.tensors) if key is not None}
    if LOW in bound:
        return None if HIGH in bound else ExpertGuess(LOW, "the prefix of its keys")
    titles = [(f"{title} in its metadata", lora.metadata[title]) for title in _TITLES if title in lora.metadata]
    for because, text in (("its file name", lora.path.stem), *titles, ("the name of its folder", lora.path.resolve().parent.name)):
        # CamelCase words are words too: T2V-HighNoise, myLoraLow.
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower()
        named = [expert for expert, pattern in _EXPERT_WORDS.items() if pattern.search(words)]
        if named:
            return ExpertGuess(named[0], because) if len(named) == 1 else None
    return None


def model_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of the transformers of `spec`."""
    return {name: tuple(tensor.shape) for name, tensor in expected_tensors(model_factory(spec, spec.experts[0].name)).items()}


def guess_models(lora: LoraTensors) -> dict[str, LoraContents]:
    """Name of each model that every key of the file with a place fits in -> what it would do there.

    Several where the file does not touch the layers they differ in, those that skip the fewest keys of an image input first.
    If every model leaves keys over, those that leave the fewest.
    """
    found: dict[str, LoraContents] = {}
    for spec in MODELS.values():
        contents = match(lora, model_shapes(spec), experts=[expert.name for expert in spec.experts])
        if contents.changes and not contents.misfits:
            found[spec.name] = contents
    fewest = min((len(contents.unmatched) for contents in found.values()), default=0)
    fitting = {name: contents for name, contents in found.items() if len(contents.unmatched) == fewest}
    return dict(sorted(fitting.items(), key=lambda each: len(each[1].wan21_image)))


def choice_notes(found: Mapping[str, LoraContents]) -> list[str]:
    """What tells the models of `guess_models` apart, in a sentence; none where all take the same keys."""
    fewest = min(len(contents.wan21_image) for contents in found.values())
    whole = [name for name, contents in found.items() if len(contents.wan21_image) == fewest]
    skipping = {name: len(contents.wan21_image) for name, contents in found.items() if name not in whole}
    if not skipping:
        return []
    return [
        f"{max(skipping.values())} keys are for an image input, which of these only {' and '.join(whole)} "
        f"{'has' if len(whole) == 1 else 'have'}; {', '.join(skipping)} would skip them"
    ]


def require_fit(lora: LoraTensors, contents: LoraContents, spec: ModelSpec, *, ignore_unmatched: bool = False) -> None:
    """Raises CheckpointError unless the file belongs to `spec`; with `ignore_unmatched`, unless a part of it does."""
    if contents.fits or (ignore_unmatched and contents.changes):
        return
    if contents.misfits:
        models = " or ".join(guess_models(lora)) or "another model"
        remedy = f"; leave out the {len(contents.misfits)} that do not fit with --lora_ignore_unmatched" if contents.changes else ""
        raise CheckpointError(f"{lora.path} is a LoRA for {models}, not for {spec.name}: {contents.misfits[0]}{remedy}")
    if not contents.unmatched:
        raise CheckpointError(
            f"{lora.path} changes nothing in {spec.name}: all of its keys are for a text encoder or the image input of Wan2.1; "
            "use a LoRA made for this model"
        )
    total = len(contents.unmatched)
    raise CheckpointError(
        f"{total} keys of {lora.path} match nothing in {spec.name} ({_first(contents.unmatched)}); "
        + ("use --lora_ignore_unmatched to go on without them" if contents.changes else "use a LoRA made for this model")
    )


def key_notes(lora: LoraTensors, contents: LoraContents) -> list[str]:
    """What a user should know about the keys of a file before it is used, in sentences."""
    name = lora.path.name
    notes = []
    if None in contents.alphas:
        rank = next(change.rank for change in contents.low_rank if change.alpha is None)
        notes.append(
            f"{name} stores no alpha: factor 1 is assumed (alpha = rank = {rank}); if the video turns to noise, give its "
            f"alpha divided by {rank} as the strength"
        )
    if contents.wan21_image:
        notes.append(
            f"{name} has {len(contents.wan21_image)} keys for the image input of Wan2.1 ({_first(contents.wan21_image, 1)}), "
            "which Wan2.2 does not have; they are skipped"
        )
    if contents.text_encoder:
        some = _first(contents.text_encoder, 1)
        notes.append(f"{name} has {len(contents.text_encoder)} keys for a text encoder ({some}); they are skipped")
    return notes


def left_out_notes(lora: LoraTensors, contents: LoraContents) -> list[str]:
    """Which keys go unused where the user asked to go on without them."""
    left_out = (*contents.unmatched, *(misfit.key for misfit in contents.misfits))
    if not left_out:
        return []
    return [f"{len(left_out)} keys of {lora.path.name} have no place in this model ({_first(left_out)}) and are left out"]


def _first(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
