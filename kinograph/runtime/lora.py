"""LoRAs on a built transformer: fused into the weights, or kept apart beside them.

    fused    W + sum of strength * (alpha / rank) * up @ down, summed in float32 and rounded once; costs nothing afterwards
    apart    base(x) + sum of strength * (alpha / rank) * (x @ down^T) @ up^T in the dtype of the layer: the weights stay as they
             are, so strengths may change between steps and quantised weights are not rounded a second time
    auto     apart where a file has phases, and on quantised linears; fused everywhere else

What is not a linear's weight (norms, modulation, the patch embedding) is small: kept apart, it is summed each time it is used.

A linear counts as quantised when its `weight` is not a float32, float16 or bfloat16 parameter. Kept apart works on any, as long
as the module has `in_features` and `out_features`. Fusing needs a module with the two methods of `Requantisable`; without them
it is refused, since writing a float weight in place of a quantised one would defeat its purpose.

Usage:

    lora = Lora(spec, [LoraFile("style.safetensors", 0.8)])             # reads headers, checks everything, `lora.notes` has warnings
    components = Components(spec, folder, options, transforms=[lora])   # applied each time an expert is loaded
    denoise(lora.schedule(runs, solver.timesteps.tolist()), solver, ...)  # strengths by phase; without phases, `runs` as they are
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeGuard, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kinograph.checkpoints.files import read_tensors
from kinograph.checkpoints.fingerprint import fingerprint
from kinograph.checkpoints.lora_formats import (
    Change,
    ExpertGuess,
    LoraContents,
    LoraTensors,
    LowRank,
    guess_expert,
    key_notes,
    left_out_notes,
    match,
    model_shapes,
    read_lora,
    require_fit,
)
from kinograph.config import ModelSpec
from kinograph.errors import CheckpointError, RequestError, RuntimeSetupError
from kinograph.models.dit import Float32Linear
from kinograph.sampling.denoise import ExpertRun
from kinograph.sampling.guidance import Model
from kinograph.sampling.presets import Preset, in_phases

# As published: twice the same tensors. Only beside the first, PEFT's, is there a file with their alpha.
RELIGHTING = ("relighting_lora/adapter_model.safetensors", "relighting_lora.ckpt")
MODES = ("auto", "fused", "apart")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


# --------------------------------------------------------------------------------------------- what is asked for


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the run, from `start` to `end` as shares of all its steps, and what the strength is multiplied by there."""

    start: float = 0.0
    end: float = 1.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise RequestError(f"a phase runs from a share of the steps to a larger one, within 0 to 1; got {self.start}-{self.end}")
        _require_finite(self.strength)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA and how strongly it is applied.

    `strength`: one number for every expert, or one for each by name; an expert that is not named goes without.
    `phases`: none means the whole run; otherwise the first phase that holds the middle of a step counts, and outside of all
    of them the strength is 0.
    """

    path: str | Path
    strength: float | Mapping[str, float] = 1.0
    phases: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        for strength in self.strength.values() if isinstance(self.strength, Mapping) else (self.strength,):
            _require_finite(strength)

    def strength_for(self, expert: str) -> float:
        """For the expert called `expert`, phases aside."""
        return float(self.strength.get(expert, 0.0) if isinstance(self.strength, Mapping) else self.strength)

    def strength_at(self, expert: str, step: int, num_steps: int) -> float:
        middle = (step + 0.5) / num_steps  # a step belongs to the phase that holds its middle, so that shares need no exact division
        share = next((phase.strength for phase in self.phases if phase.start <= middle < phase.end), 0.0) if self.phases else 1.0
        return self.strength_for(expert) * share


def relighting_lora(folder: str | Path) -> LoraFile:
    """The LoRA for light that lies in the checkpoint folder of an animation model; CheckpointError where there is none."""
    for name in RELIGHTING:
        if (path := Path(folder) / name).is_file():
            return LoraFile(path)
    raise CheckpointError(f"{folder} lacks {' and '.join(RELIGHTING)}, one of which relighting needs; download it again, or leave it out")


def with_preset(files: Sequence[LoraFile], preset: Preset, num_steps: int) -> list[LoraFile]:
    """`files` with the few-step LoRA absent during the preset's own first steps.

    The few-step LoRAs are those whose name says so. A file that has phases keeps them.
    """
    if not preset.own_steps:
        return list(files)
    few_step = [file for file in files if file.phases or _names_few_steps(Path(file.path))]
    window = Phase(start=preset.lora_start(num_steps))
    if not few_step:
        which = "no file name tells which one it is" if files else "no LoRA is given"
        raise RequestError(
            f"preset {preset.name} leaves the few-step LoRA out of the first step, and {which}; "
            f"name it with the steps it is for, such as --lora FILE:1@{window.start:g}-1"
        )
    return [replace(file, phases=(window,)) if file in few_step and not file.phases else file for file in files]


def _names_few_steps(path: Path) -> bool:
    return _FEW_STEP.search(f"{path.parent.name}/{path.name}") is not None


_FEW_STEP = re.compile(r"lightning|lightx2v|light2x|distill|turbo|causvid|\d[-_ ]?steps?", re.IGNORECASE)


def _require_finite(strength: float) -> None:
    if not math.isfinite(strength):
        raise RequestError(f"the strength of a LoRA must be a finite number; got {strength}")


# ----------------------------------------------------------------------------------------------------- transform


@dataclass(frozen=True)
class _Checked:
    """A file that was found to fit."""

    file: LoraFile
    path: Path
    contents: LoraContents
    fingerprint: str

    def changes(self, expert: str) -> Iterator[Change]:
        if self.file.strength_for(expert):
            yield from (change for change in self.contents.changes if change.expert in (None, expert))


@dataclass(frozen=True)
class _Addition:
    """One change of one file to one parameter, with its tensors at hand."""

    source: int  # index of the file
    change: Change
    tensors: Mapping[str, Tensor]

    def factors(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(down [rank, in], up [out, rank]) of a low-rank change, without alpha."""
        assert isinstance(self.change, LowRank)
        down, up = (self.tensors[name].to(device).to(dtype).flatten(1) for name in (self.change.down, self.change.up))
        return down, up

    def difference(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """What is added at strength 1, in float32."""
        if isinstance(self.change, LowRank):
            down, up = self.factors(device, torch.float32)
            return (up @ down).mul_(self.change.factor).reshape(tuple(shape))
        return self.tensors[self.change.name].to(device).float().reshape(tuple(shape))


class Lora:
    """LoRA files for one model, checked at once; a transform for `Components`: lora(model, name) -> model.

    `notes` has what the user should hear before generating. Raises CheckpointError for a file that is damaged, of another
    method, or of another model, and for keys that match nothing unless `ignore_unmatched`; RequestError for strengths that
    make no sense.
    """

    def __init__(self, spec: ModelSpec, files: Sequence[LoraFile], *, mode: str = "auto", ignore_unmatched: bool = False) -> None:
        if mode not in MODES:
            raise RequestError(f"LoRA mode {mode!r} is not known; choose one of {', '.join(MODES)}")
        phased = next((file for file in files if file.phases), None)
        if mode == "fused" and phased is not None:
            raise RequestError(f"{phased.path} has phases, and a fused LoRA cannot change between steps; use --lora_mode apart")
        self.experts = tuple(expert.name for expert in spec.experts)
        self.mode = "apart" if phased is not None else mode
        self.notes: list[str] = []
        shapes = model_shapes(spec) if files else {}
        self._files = tuple(self._check(file, spec, shapes, ignore_unmatched) for file in files)

    def __call__(self, model: nn.Module, name: str) -> nn.Module:
        if name not in self.experts:
            return model
        for parameter, additions in self._additions(name).items():
            path, _, leaf = parameter.rpartition(".")
            module = model.get_submodule(path)
            if self._stays_apart(module):
                _keep_apart(model, path, leaf, additions)
            else:
                _fuse(module, leaf, [(addition, self._files[addition.source].file.strength_for(name)) for addition in additions])
        set_strengths(model, self.strengths(name, 0, 1))
        return model

    def strengths(self, expert: str, step: int, num_steps: int) -> tuple[float, ...]:
        """Of each file, at one step of a run."""
        return tuple(checked.file.strength_at(expert, step, num_steps) for checked in self._files)

    def schedule(self, runs: Sequence[ExpertRun], timesteps: Sequence[int]) -> list[ExpertRun]:
        """`runs`, split where a strength changes; each part sets its strengths when the loop enters it."""
        if not any(checked.file.phases for checked in self._files):
            return list(runs)
        return in_phases(runs, timesteps, lambda expert, i: self.strengths(expert.name, i, len(timesteps)), _with_strengths)

    def describe(self) -> list[dict[str, Any]]:
        """What was applied, for the recipe; plain JSON."""
        return [
            {
                "path": str(checked.path.absolute()),
                "fingerprint": checked.fingerprint,
                "strength": {expert: checked.file.strength_for(expert) for expert in self.experts},
                "phases": [[phase.start, phase.end, phase.strength] for phase in checked.file.phases],
                "mode": self.mode,
            }
            for checked in self._files
        ]

    def _check(self, file: LoraFile, spec: ModelSpec, shapes: Mapping[str, Sequence[int]], ignore_unmatched: bool) -> _Checked:
        named = file.strength if isinstance(file.strength, Mapping) else {}
        if unknown := [name for name in named if name not in self.experts]:
            raise RequestError(f"{spec.name} has no expert {unknown[0]!r} for {file.path}; its experts are {', '.join(self.experts)}")
        tensors = read_lora(file.path)
        contents = match(tensors, shapes, experts=self.experts)
        require_fit(tensors, contents, spec, ignore_unmatched=ignore_unmatched)
        self.notes += [*key_notes(tensors, contents), *left_out_notes(tensors, contents)]
        self.notes += self._expert_notes(file, tensors, guess_expert(tensors))
        return _Checked(file, tensors.path, contents, fingerprint(tensors.path))

    def _expert_notes(self, file: LoraFile, tensors: LoraTensors, guess: ExpertGuess | None) -> list[str]:
        if guess is None or guess.expert not in self.experts:
            return []
        others = [name for name in self.experts if name != guess.expert and file.strength_for(name)]
        if not others:
            return []
        return [
            f"{tensors.path.name} is for {guess.expert} by {guess.because}, but is used for {', '.join(others)}; "
            f"--lora_{guess.expert.removesuffix('_noise')} gives it to that expert alone"
        ]

    def _additions(self, expert: str) -> dict[str, list[_Addition]]:
        """Parameter -> what the files add to it. Their tensors are backed by the files until used."""
        found: dict[str, list[_Addition]] = {}
        for source, checked in enumerate(self._files):
            tensors = dict(read_tensors(checked.path))
            for change in checked.changes(expert):
                found.setdefault(change.parameter, []).append(_Addition(source, change, tensors))
        return found

    def _stays_apart(self, module: nn.Module) -> bool:
        if self.mode == "auto":
            # An AdaptedLinear has no weight of its own: once a linear is wrapped, all that is added to it goes to the wrapper.
            return _is_linear(module) and not _is_plain(getattr(module, "weight", None))
        return self.mode == "apart"


def _with_strengths(run: ExpertRun, strengths: tuple[float, ...]) -> ExpertRun:
    @contextmanager
    def on_device() -> Iterator[Model]:
        with run.on_device() as model:
            assert isinstance(model, nn.Module)  # not just any function: it was placed
            set_strengths(model, strengths)
            yield model

    entered: Callable[[], AbstractContextManager[Model]] = on_device
    return replace(run, on_device=entered)


def set_strengths(model: nn.Module, strengths: Sequence[float]) -> None:
    """Sets the strength of every LoRA that is kept apart in `model`, by the index of its file. Copies nothing to the device."""
    for module in model.modules():
        if isinstance(module, Term):
            module.strength = strengths[module.source]


# --------------------------------------------------------------------------------------------------------- fused


@runtime_checkable
class Requantisable(Protocol):
    """What a quantised linear offers if LoRAs may be fused into it."""

    def dequantised_weight(self) -> Tensor:
        """[out, in] float32."""

    def requantise_weight(self, weight: Tensor) -> None:
        """Stores `weight` [out, in] as the module stores its own."""


@torch.no_grad()
def _fuse(module: nn.Module, leaf: str, additions: Sequence[tuple[_Addition, float]]) -> None:
    parameter = getattr(module, leaf, None)
    if _is_plain(parameter):
        # Never in place: weights on a CPU may be backed by the file.
        total = _sum(parameter.float(), additions).to(parameter.dtype)
        setattr(module, leaf, nn.Parameter(total, requires_grad=parameter.requires_grad))
    elif isinstance(module, Requantisable):
        module.requantise_weight(_sum(module.dequantised_weight(), additions))
    else:
        raise RuntimeSetupError(
            f"a LoRA cannot be fused into a {type(module).__name__}, whose weights are quantised; use --lora_mode apart (or auto)"
        )


def _sum(weight: Tensor, additions: Sequence[tuple[_Addition, float]]) -> Tensor:
    for addition, strength in additions:
        weight = weight + addition.difference(weight.shape, weight.device) * strength
    return weight


# ---------------------------------------------------------------------------------------------------- kept apart


class Term(nn.Module):
    """One addition that is kept apart. `scale` = strength * alpha / rank; a strength of 0 is skipped, exactly."""

    def __init__(self, source: int, factor: float) -> None:
        super().__init__()
        self.source = source  # index of the file
        self.factor = factor
        self.strength = 1.0

    @property
    def scale(self) -> float:
        return self.strength * self.factor

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Adds scale * what it does to `x` [rows, in], in place, to `out` [rows, out]."""
        raise NotImplementedError


class LowRankTerm(Term):
    """scale * (x @ down^T) @ up^T."""

    down: Tensor
    up: Tensor

    def __init__(self, source: int, factor: float, *, down: Tensor, up: Tensor) -> None:
        super().__init__(source, factor)
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)

    def add_to(self, out: Tensor, x: Tensor) -> None:
        # The product accumulates into `out`: no second tensor of its size, and one rounding less.
        hidden = F.linear(x.to(self.down.dtype), self.down)
        out.addmm_(hidden.to(out.dtype), self.up.to(out.dtype).t(), alpha=self.scale)


class WeightTerm(Term):
    """scale * x @ difference^T, for a linear; or a difference that `AdaptedParameter` adds to the parameter itself."""

    difference: Tensor

    def __init__(self, source: int, difference: Tensor) -> None:
        super().__init__(source, 1.0)
        self.register_buffer("difference", difference, persistent=False)

    def add_to(self, out: Tensor, x: Tensor) -> None:
        out.addmm_(x.to(out.dtype), self.difference.to(out.dtype).t(), alpha=self.scale)


class BiasTerm(WeightTerm):
    """scale * difference, to every row."""

    def add_to(self, out: Tensor, x: Tensor) -> None:
        out.add_(self.difference.to(out.dtype), alpha=self.scale)


class AdaptedLinear(nn.Module):
    """A linear, of any storage, and what LoRAs add to it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.terms = nn.ModuleList()
        self.in_features, self.out_features = cast(int, base.in_features), cast(int, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        for term in cast(Iterable[Term], self.terms):
            if term.scale:
                term.add_to(out.view(-1, self.out_features), x.reshape(-1, self.in_features))
        return out


class AdaptedParameter(nn.Module):
    """A parametrisation: the sum of a small parameter and what LoRAs add to it, in its dtype, formed whenever it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.terms = nn.ModuleList()

    def forward(self, original: Tensor) -> Tensor:
        total = original
        for term in cast(Iterable[WeightTerm], self.terms):
            if term.scale:
                total = total.float().add(term.difference, alpha=term.scale)
        return total.to(original.dtype)


def _keep_apart(model: nn.Module, path: str, leaf: str, additions: Sequence[_Addition]) -> None:
    module = model.get_submodule(path)
    if not _is_linear(module):
        terms = _adapted_parameter(module, leaf).terms
        parameter = getattr(module, leaf)
        terms.extend(WeightTerm(addition.source, addition.difference(parameter.shape, parameter.device)) for addition in additions)
        return
    if not isinstance(module, AdaptedLinear):
        module = AdaptedLinear(module)
        model.set_submodule(path, module)
    module.terms.extend(_linear_term(module, leaf, addition) for addition in additions)


def _linear_term(linear: AdaptedLinear, leaf: str, addition: _Addition) -> Term:
    device, dtype = _device_and_dtype(linear.base)
    if isinstance(addition.change, LowRank):
        down, up = addition.factors(device, dtype)
        return LowRankTerm(addition.source, addition.change.factor, down=down, up=up)
    if leaf == "bias":
        return BiasTerm(addition.source, addition.difference((linear.out_features,), device).to(dtype))
    return WeightTerm(addition.source, addition.difference((linear.out_features, linear.in_features), device).to(dtype))


def _adapted_parameter(module: nn.Module, leaf: str) -> AdaptedParameter:
    adapted = AdaptedParameter()
    parametrize.register_parametrization(module, leaf, adapted)
    return adapted


def _device_and_dtype(linear: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where, and in what dtype, a linear computes. A quantised one has its bias in that dtype; without a bias, float32 is safe."""
    weight, bias = getattr(linear, "weight", None), getattr(linear, "bias", None)
    tensor = next((tensor for tensor in (weight, bias, *linear.parameters(), *linear.buffers()) if isinstance(tensor, Tensor)), None)
    assert tensor is not None, f"a {type(linear).__name__} without tensors"
    if isinstance(linear, Float32Linear):
        return tensor.device, torch.float32
    return tensor.device, next((each.dtype for each in (weight, bias) if _is_plain(each)), torch.float32)


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _is_plain(tensor: Any) -> TypeGuard[Tensor]:
    """Whether a parameter is stored as it is computed with. Subclasses of Tensor are how some libraries quantise."""
    return type(tensor) in (nn.Parameter, Tensor) and tensor.dtype in FLOATS
