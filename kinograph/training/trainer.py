"""The training loop: a step captured as one CUDA graph, a budget in seconds that may be spent over several runs.

    trainer = Trainer(weights, optimizer, [Phase("crops", crops_loss, until=0.75), Phase("clips", clips_loss)], config)
    trainer.load(file)              # to go on where an earlier run stopped
    trainer.run(stop_at=deadline)   # until the budget, or the deadline, is reached
    trainer.save(file)

What a phase's `loss` must respect, because it is recorded once and replayed: it takes no arguments, reads nothing back
to the host, moves nothing between host and device, has the same shapes every time, and draws random numbers from the
device's default generator. On a CPU the same function simply runs.

The learning rate follows the share of the budget that is spent. With a budget in steps a run is reproducible bit for
bit, also across a resume; with a budget in seconds it depends on the clock.
"""
from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinograph.errors import CheckpointError
from kinograph.runtime.device import synchronize
from kinograph.training.optim import FlatParameters, Optimizer

Loss = Callable[[], Mapping[str, Tensor]]
"""Scalars by name. "loss" is what is minimised; the others are reported."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long to train and how to pace it. Exactly one of the budgets is given."""

    budget_seconds: float | None = None
    budget_steps: int | None = None
    warmup_steps: int = 200
    decay: str = "cosine"  # "cosine" from the peak on, or "linear": at the peak until 40 % of the budget, then straight down
    final_rate: float = 0.03  # share of the peak learning rate at the end
    capture: bool = True  # on CUDA: replay the step as a graph
    report_every: float = 10.0  # seconds
    evaluate_every: float = 120.0  # seconds
    steps_in_flight: int = 8  # the host waits for the device after so many: the clock must not run ahead of the work
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.budget_seconds is None) == (self.budget_steps is None):
            raise ValueError("give either budget_seconds or budget_steps")
        if self.decay not in ("cosine", "linear"):
            raise ValueError(f"decay must be 'cosine' or 'linear'; got {self.decay!r}")

    def progress(self, *, step: int, seconds: float) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        spent = step / self.budget_steps if self.budget_steps else seconds / (self.budget_seconds or 1.0)
        return min(1.0, spent)

    def rate(self, progress: float, warm_steps: int) -> float:
        """The factor on the learning rate at `progress`, `warm_steps` steps after the start or a light resume."""
        falling = 0.5 * (1 + math.cos(math.pi * progress)) if self.decay == "cosine" else min(1.0, (1 - progress) / 0.6)
        warm = min(1.0, (warm_steps + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warm * (self.final_rate + (1 - self.final_rate) * falling)


@dataclass(frozen=True)
class Phase:
    """A loss and the share of the budget up to which it is used."""

    name: str
    loss: Loss
    until: float = 1.0


# ----------------------------------------------------------------------------------------------- compiling, capturing


@dataclass(frozen=True)
class CompiledBlocks:
    """Modules whose forward is compiled; `undo` gives them their own back."""

    blocks: tuple[nn.Module, ...]

    def undo(self) -> None:
        for block in self.blocks:
            block.__dict__.pop("forward", None)
        torch._dynamo.reset()


def compile_blocks(blocks: Sequence[nn.Module]) -> CompiledBlocks:
    """Compiles each block's forward when it is first called; blocks of one kind and shape share the result.

    Dynamo goes on uncompiled, without a word, once a function has been compiled for too many shapes; a VAE has more than
    the default limit, so it is raised here.
    """
    for limit in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(torch._dynamo.config, limit):
            setattr(torch._dynamo.config, limit, 512)
    for block in blocks:
        block.__dict__["forward"] = torch.compile(block.forward, dynamic=False)  # over the method of its class
    return CompiledBlocks(tuple(blocks))


class CapturedStep:
    """`step`, run as it is for a few calls and then recorded and replayed as one CUDA graph.

    Every call is a real step, also those that warm up. If recording fails, the reason is printed and steps go on one
    kernel at a time.
    """

    def __init__(self, step: Callable[[], None], device: torch.device, *, capture: bool, warmup: int = 3) -> None:
        self._step = step
        self._capture = capture and device.type == "cuda"
        self._warm = warmup
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def recorded(self) -> bool:
        return self._graph is not None

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        elif not self._capture:
            self._step()
        elif self._warm > 0:
            self._warm -= 1
            self._on_side_stream()
        else:
            self._record()

    def _on_side_stream(self) -> None:
        """Libraries allocate workspaces per stream at first use; on the default stream that would break recording."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step()
        torch.cuda.current_stream().wait_stream(side)

    def _record(self) -> None:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step()
        except Exception:  # any library inside the step may refuse to be recorded, each with its own error
            print(f"recording the step failed; going on without a graph:\n{traceback.format_exc()}", flush=True)
            self._capture = False
            self._step()
            return
        self._graph = graph
        graph.replay()


# ---------------------------------------------------------------------------------------------------------- the loop


class Trainer:
    """Runs the phases until the budget is spent. `on_evaluate(trainer)` returns a line to print; it runs outside the graph."""

    def __init__(
        self,
        weights: FlatParameters,
        optimizer: Optimizer,
        phases: Sequence[Phase],
        config: TrainConfig,
        *,
        compiled: CompiledBlocks | None = None,
        on_evaluate: Callable[[Trainer], str] | None = None,
        report: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        self.weights = weights
        self.optimizer = optimizer
        self.phases = tuple(phases)
        self.config = config
        self.step = 0
        self.seconds = 0.0  # spent, over all runs
        self.device = weights.master.device
        self._compiled = compiled
        self._on_evaluate = on_evaluate
        self._report = report
        self._warm_since = 0
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        torch.manual_seed(config.seed)

    @property
    def progress(self) -> float:
        return self.config.progress(step=self.step, seconds=self.seconds)

    @property
    def finished(self) -> bool:
        return self.progress >= 1.0

    def run(self, *, stop_at: float | None = None, max_steps: int | None = None) -> None:
        """Trains until the budget is spent, `time.monotonic()` reaches `stop_at`, or `max_steps` more steps are done."""
        last_step = None if max_steps is None else self.step + max_steps
        phase, step = None, None
        clock = _Clock(self.seconds)
        reported = evaluated = clock.seconds
        while not self.finished and (last_step is None or self.step < last_step):
            if stop_at is not None and time.monotonic() >= stop_at:
                break
            if phase is not (current := self._phase()):
                phase = current
                step = None  # frees the graph of the phase before
                step = CapturedStep(partial(self.train_step, phase), self.device, capture=self.config.capture)
                self._report(f"phase {phase.name} from step {self.step}")
            assert step is not None
            self.optimizer.set_rate(self.config.rate(self.progress, self.step - self._warm_since))
            self._guarded(step)
            self.step += 1
            self._summed += 1
            if self.step % self.config.steps_in_flight == 0:
                synchronize(self.device)
            self.seconds = clock.seconds
            if self.seconds - reported >= self.config.report_every:
                synchronize(self.device)
                self.seconds = clock.seconds
                self._report(self._summary(self.seconds - reported))
                reported = self.seconds
            if self._on_evaluate is not None and self.seconds - evaluated >= self.config.evaluate_every and not self.finished:
                self._report(self._on_evaluate(self))
                self.seconds = reported = evaluated = clock.seconds
        synchronize(self.device)
        self.seconds = clock.seconds
        if self._summed:
            self._report(self._summary(self.seconds - reported))

    def _phase(self) -> Phase:
        return next((phase for phase in self.phases if self.progress < phase.until), self.phases[-1])

    def _guarded(self, step: CapturedStep) -> None:
        """A step; if it fails while blocks are compiled, compiling is given up, aloud, and the step is run again."""
        try:
            step()
        except Exception:
            if self._compiled is None:
                raise
            self._report(f"the compiled step failed; going on uncompiled:\n{traceback.format_exc()}")
            self._compiled.undo()
            self._compiled = None
            step()

    def train_step(self, phase: Phase) -> None:
        """One step of `phase`, at the rate that the optimizer has: forward, backward, update."""
        self.weights.forget_gradients()
        values = phase.loss()
        values["loss"].backward()
        self.optimizer.step()
        with torch.no_grad():
            for name, value in {**values, "gradient": self.optimizer.gradient_norm}.items():
                self._sum(name).add_(value.detach())

    def _sum(self, name: str) -> Tensor:
        if name not in self._sums:
            self._sums[name] = torch.zeros((), device=self.device)
        return self._sums[name]

    def _summary(self, seconds: float) -> str:
        count = max(1, self._summed)
        means = {name: total.item() / count for name, total in self._sums.items()}
        for total in self._sums.values():
            total.zero_()
        self._summed = 0
        values = " ".join(f"{name} {value:.4g}" for name, value in means.items() if value)
        rate = self.optimizer.rate.item()
        return (
            f"{self.seconds:6.1f} s {100 * self.progress:5.1f} % step {self.step:6d} "
            f"{1000 * seconds / count:7.2f} ms/step rate {rate:.3f} {values}"
        )

    # ------------------------------------------------------------------------------------------------ saving, resuming

    def state_dict(self) -> dict[str, Any]:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "warm_since": self._warm_since,
            "rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def save(self, file: str | Path) -> None:
        """Everything to go on exactly from here, in one file; about 16 bytes a weight. Written whole or not at all."""
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(file.name + ".partial")
        torch.save(self.state_dict(), unfinished)
        unfinished.replace(file)

    def load(self, file: str | Path) -> None:
        """Goes on from a file of `save`. Must come before `run`: a recorded graph would keep the old random state."""
        if not Path(file).is_file():
            raise CheckpointError(f"there is no training state {file}; leave out --resume to start anew")
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self._warm_since = state["step"], state["seconds"], state["warm_since"]
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    def start_from(self, tensors: Mapping[str, Tensor], *, step: int, seconds: float) -> None:
        """A light resume, from weights alone, that is files a quarter the size: the optimizer starts fresh and warms up again."""
        self.weights.load(tensors)
        self.optimizer.state.ema.copy_(self.weights.master)
        self.step, self.seconds, self._warm_since = step, seconds, step
        # Other random numbers than those the first `step` steps saw.
        torch.manual_seed(self.config.seed + 1_000_003 * step)


class _Clock:
    """Seconds since it was made, on top of those given."""

    def __init__(self, before: float) -> None:
        self._zero = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._zero
