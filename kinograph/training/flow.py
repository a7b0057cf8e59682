"""What trainings of a transformer by flow matching share, whatever it is conditioned on."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from kinograph.models.dit import DiT
from kinograph.training.optim import FlatParameters, Optimizer
from kinograph.training.trainer import Phase, TrainConfig, Trainer, compile_blocks

DIT, TEXT = "dit", "text_encoder"  # modules, as the saved names have them


class Training(Protocol):
    """A transformer in training."""

    weights: FlatParameters
    optimizer: Optimizer

    @property
    def dit(self) -> DiT: ...

    @property
    def title(self) -> str:
        """What is trained on what, for the log."""

    def loss(self) -> Mapping[str, Tensor]:
        """For a batch that it draws itself: "loss", which is minimised, and what else is worth telling."""

    def evaluate(self) -> str:
        """Saves the averaged weights, and says what the judge sees in their samples."""


def trainer_of(training: Training, config: TrainConfig, *, compiled: bool) -> Trainer:
    """The trainer that carries out `training`; `compiled`: with compiled blocks."""
    return Trainer(
        training.weights,
        training.optimizer,
        [Phase(training.title, training.loss)],
        config,
        compiled=compile_blocks(list(training.dit.blocks)) if compiled else None,
        on_evaluate=lambda trainer: training.evaluate(),
    )


def precise(name: str, parameter: Tensor) -> bool:
    """Whether the model computes with it in float32 anyway: then rounding the copy it computes with would only hurt.

    Not the norms: the model takes its compute dtype from one of them.
    """
    return name.startswith(f"{DIT}.") and any(part in name for part in ("modulation", "time_", "head.head"))


def real_tokens(lengths: Tensor, text_len: int) -> Tensor:
    """[B, text_len] bool: true at the first `lengths` [B] positions."""
    return torch.arange(text_len, device=lengths.device) < lengths[:, None]


def on_device_already(dit: DiT) -> Callable[[], AbstractContextManager[DiT]]:
    """What `ExpertRun.on_device` is for a model that needs no placing."""
    return lambda: nullcontext(dit)
