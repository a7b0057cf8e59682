"""The models of one spec, and the only way any of them reaches a device: `with components.place("vae") as vae:`.

    resident   loaded at its first use, kept until the end
    release    loaded for the block, dropped after it; the next use reads the memory-mapped files again, so there is no
               copy on the host, and of two experts only the one at work has memory

Order of what happens to a model: load -> attention kernels -> `transforms`, as given.
"""
from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from kinograph.checkpoints.fingerprint import combined_fingerprint
from kinograph.checkpoints.layout import TEXT_ENCODER, VAE_NAME, Parts, bundled_folder, model_factory, open_checkpoint
from kinograph.checkpoints.load import load_model
from kinograph.checkpoints.recognise import IMAGE_ENCODER, SPEECH_ENCODER
from kinograph.checkpoints.tokenizer_files import open_tokenizer
from kinograph.config import ModelSpec, RuntimeOptions
from kinograph.errors import RuntimeSetupError
from kinograph.models.t5 import TextEncoder
from kinograph.models.tokenizer import Tokenizer
from kinograph.models.vae import VAE
from kinograph.runtime.device import (
    device_name,
    free_bytes,
    host_peak_bytes,
    resolve_device,
    resolve_dtype,
    return_memory,
    synchronize,
    take_peak_bytes,
)
from kinograph.runtime.kernels import set_attention

__all__ = ["Components", "Parts", "StageReport", "Transform", "bundled_folder"]

logger = logging.getLogger(__name__)

Transform = Callable[[nn.Module, str], nn.Module]
"""(model, name) -> model, applied once after each load: LoRA, quantisation, parallelism, compilation."""

# Weights may take this share of the free memory if all are to stay; the rest is for what a run computes.
RESIDENT_SHARE = 0.7
# A text encoder up to this size in float32 runs in it; a larger one runs as stored, and on a CPU stays in its file.
SMALL_TEXT_ENCODER = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """What one stage took."""

    stage: str
    seconds: float  # in all
    load_seconds: float  # of them, reading weights
    peak_device_bytes: int  # largest allocation on the device during the stage; 0 on a CPU
    host_rss_bytes: int  # largest resident size of the process up to the end of the stage, mapped files included


@dataclass
class _OpenStage:
    name: str
    started: float
    load_seconds: float = 0.0
    peak_device_bytes: int = 0


class Components:
    """The models of `spec` in `folder`, checked at once, loaded when first placed.

    `folder`: a checkpoint in any layout that `checkpoints.layout` reads; None for models that ship with the package, or
    if `parts` has everything. `parts` replaces single models by other files.
    `report` grows by one entry per finished stage; `notes` says in sentences what was decided and why.
    Raises CheckpointError and RuntimeSetupError before any weight is read.
    """

    def __init__(
        self,
        spec: ModelSpec,
        folder: str | Path | None = None,
        options: RuntimeOptions | None = None,
        *,
        transforms: Sequence[Transform] = (),
        parts: Parts | None = None,
    ) -> None:
        options = options or RuntimeOptions()
        self.spec = spec
        self.options = options
        self.transforms = tuple(transforms)
        self.device = resolve_device(options.device)
        self.dtype = resolve_dtype(options.dtype, self.device)
        self.vae_dtype = resolve_dtype(options.vae_dtype, self.device)
        self.text_device = self.device if options.text_device == "auto" else resolve_device(options.text_device)
        if folder is None and (spec.bundled or not parts):
            folder = bundled_folder(spec)
        self.folder = None if folder is None else Path(folder)
        checkpoint = open_checkpoint(spec, self.folder, parts=parts)
        self.weights = checkpoint.weights
        self._tokenizer_source = checkpoint.tokenizer
        self.text_dtype = self._choose_text_dtype()
        self.report: list[StageReport] = []
        self.notes: list[str] = []
        for note in checkpoint.notes:
            self._note(note)
        self.attention: str | None = None  # what was chosen, once a transformer is loaded
        self.offload = self._choose_offload()
        self._models: dict[str, nn.Module] = {}
        self._users: Counter[str] = Counter()
        self._stages: list[_OpenStage] = []

    # ------------------------------------------------------------------------------------------------- using

    @overload
    def place(self, name: Literal["vae"]) -> AbstractContextManager[VAE]: ...
    @overload
    def place(self, name: Literal["text_encoder"]) -> AbstractContextManager[TextEncoder]: ...
    @overload
    def place(self, name: str) -> AbstractContextManager[nn.Module]: ...
    @contextmanager
    def place(self, name: str) -> Iterator[Any]:
        """The model called `name`, loaded, on its device, for the length of the block.

        When offloading it loses its memory at the end of the block, on errors too: the module must not be used after.
        Outside of a stage, the block is a stage of its own.
        """
        with nullcontext() if self._stages else self.stage(name), self._memory_errors(name):
            model = self._models[name] if name in self._models else self._load(name)
            self._users[name] += 1
            try:
                yield model
            finally:
                self._users[name] -= 1
                if self.offload:
                    self.release(name)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures the block and adds it to `report`; a stage inside another is reported on its own too."""
        self._note_peak()
        self._stages.append(_OpenStage(name, time.perf_counter()))
        try:
            yield
            synchronize(self.device)
        finally:
            self._note_peak()
            stage = self._stages.pop()
            self.report.append(
                StageReport(
                    stage=stage.name,
                    seconds=time.perf_counter() - stage.started,
                    load_seconds=stage.load_seconds,
                    peak_device_bytes=stage.peak_device_bytes,
                    host_rss_bytes=host_peak_bytes(),
                )
            )

    def release(self, *names: str) -> None:
        """Drops the weights of the models named, or of all; those inside a `place` block keep them."""
        idle = [name for name in names or tuple(self._models) if name in self._models and not self._users[name]]
        for name in idle:
            # The caller's variable outlives the block, so the module is emptied: waiting for its end would not free memory.
            self._models.pop(name).to("meta")
        if idle:
            return_memory(self.device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return open_tokenizer(self._tokenizer_source, self.spec.text.text_len)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the models that have their weights in memory now."""
        return tuple(self._models)

    def fingerprints(self) -> dict[str, str]:
        """Model name -> identity of its weight files (`checkpoints.fingerprint`)."""
        return {name: combined_fingerprint(weights.files) for name, weights in self.weights.items()}

    def describe(self) -> dict[str, str | bool | None]:
        """How this runs, for a record beside the result."""
        return {
            "device": str(self.device),
            "device_name": device_name(self.device),
            "dtype": _dtype_name(self.dtype),
            "vae_dtype": _dtype_name(self.vae_dtype),
            "text_device": str(self.text_device),
            "text_dtype": _dtype_name(self.text_dtype) if self.text_dtype else "as stored",
            "offload": self.offload,
            "attention": self.attention,
        }

    # ------------------------------------------------------------------------------------------------ choosing

    def _device_and_dtype(self, name: str) -> tuple[torch.device, torch.dtype | None]:
        if name == TEXT_ENCODER:
            return self.text_device, self.text_dtype
        if name in (SPEECH_ENCODER, IMAGE_ENCODER):  # once a run, and what they give decides all frames
            return self.device, torch.float32
        return self.device, self.vae_dtype if name == VAE_NAME else self.dtype

    def _choose_text_dtype(self) -> torch.dtype | None:
        """None: as stored, which is bfloat16 in the published file, the dtype it was made to run in."""
        weights = self.weights[TEXT_ENCODER]
        if weights.num_bytes(torch.float32) <= SMALL_TEXT_ENCODER:
            return torch.float32
        return torch.bfloat16 if weights.contents.quantised else None

    def _choose_offload(self) -> bool:
        if self.options.offload is not None:
            return self.options.offload
        free = free_bytes(self.device)
        if free is None:
            return False
        needed = 0
        for name, weights in self.weights.items():
            device, dtype = self._device_and_dtype(name)
            needed += weights.num_bytes(dtype) if device == self.device else 0
        offload = needed > RESIDENT_SHARE * free
        decision = "each model is released after its stage" if offload else "all models stay loaded"
        self._note(f"weights need {_gigabytes(needed)}, {self.device} has {_gigabytes(free)} free: {decision}")
        return offload

    # ------------------------------------------------------------------------------------------------- loading

    def _load(self, name: str) -> nn.Module:
        started = time.perf_counter()
        device, dtype = self._device_and_dtype(name)
        is_dit = any(expert.name == name for expert in self.spec.experts)
        model = load_model(
            model_factory(self.spec, name),
            self.weights[name].files,
            device=device,
            dtype=dtype,
            keep_fp32=computes_in_fp32 if is_dit else lambda name: False,
            steps=self.weights[name].steps,
        )
        if is_dit:
            model, attention = set_attention(model, self.options.attention)
            if attention != self.attention:
                self._note(f"attention: {attention}")
            self.attention = attention
        for transform in self.transforms:
            model = transform(model, name)
        synchronize(device)
        self._models[name] = model
        self._stages[-1].load_seconds += time.perf_counter() - started
        return model

    @contextmanager
    def _memory_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            device, dtype = self._device_and_dtype(name)
            raise RuntimeSetupError(
                f"{device} ran out of memory with {name} ({_gigabytes(self.weights[name].num_bytes(dtype))} of weights) on it; "
                + ("use" if self.offload else "turn offloading on, or use")
                + " a smaller size, fewer frames or a GPU with more memory"
            ) from error

    def _note_peak(self) -> None:
        """Books the device's peak so far to every open stage, so that the stages inside one another each see theirs."""
        peak = take_peak_bytes(self.device)
        for stage in self._stages:
            stage.peak_device_bytes = max(stage.peak_device_bytes, peak)

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        logger.info(sentence)


def computes_in_fp32(name: str) -> bool:
    """Whether a transformer's tensor is used in float32: rounding it would lose precision and save no time.

    They are the timestep embedding, modulation and head: 1.3 % of the weights.
    """
    return name.startswith(("time_embedding.", "time_projection.", "head.")) or name.endswith(".modulation")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
