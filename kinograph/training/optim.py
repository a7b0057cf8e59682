"""One flat float32 copy of all weights, and the two optimizers that step it: AdamW and Muon.

    FlatParameters   the master weights of several modules in one float32 buffer; the modules' own parameters become
                     views of a second buffer in the compute dtype
    Optimizer        clips, steps, averages (EMA) and refreshes, without ever asking the device for a number

Why flat. A small model's step is bound by kernel launches: hundreds of tensors of a few thousand elements. In one
buffer, gradient norm, AdamW, EMA and the cast to bfloat16 are a dozen kernels whatever the number of tensors, and the
state to save is five tensors. Why a second module-side buffer rather than casting inside the forward: parameters stay
ordinary leaves, so compiled blocks, gradients and attention see plain bfloat16 tensors, and a step casts once.

Layout of the buffer, in this order: matrices for Muon, grouped by shape (each group is one [n, rows, columns] stack);
tensors with weight decay; tensors without. Kernels of convolutions are stored with the input channels last, the order
in which cuDNN's half-precision kernels want them.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # elements; every tensor starts on a boundary that vectorised loads accept in any dtype

# Coefficients of the quintic iteration x <- a x + b (x xT) x + c (x xT)^2 x, chosen for a steep slope at zero so that
# five rounds bring singular values from [0.01, 1] to about 1 (Jordan et al., "Muon", 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How to step. The learning rates are the peaks; the trainer multiplies both by its schedule."""

    kind: str = "muon"  # "muon": hidden matrices by Muon, the rest by AdamW; "adamw": everything by AdamW
    lr: float = 1e-3  # of AdamW
    muon_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    momentum: float = 0.95  # of Muon
    clip_norm: float = 1.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        if self.kind not in ("muon", "adamw"):
            raise ValueError(f"the optimizer must be 'muon' or 'adamw'; got {self.kind!r}")


# ----------------------------------------------------------------------------------------------- which weight goes where


def hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon should step it: the linears inside the blocks of a transformer, not embeddings, head or tables."""
    return parameter.ndim == 2 and "blocks." in name and "embedding" not in name


def hidden_kernel(name: str, parameter: Tensor) -> bool:
    """The same for a VAE: 3x3 and larger convolutions between hidden widths, as [out, in * kernel] matrices."""
    spatial = parameter.ndim >= 4 and parameter[0, 0].numel() > 1
    return spatial and min(parameter.shape[:2]) >= 16


def _never(name: str, parameter: Tensor) -> bool:
    return False


# ----------------------------------------------------------------------------------------------------------- storage


@dataclass(frozen=True)
class Segment:
    """One tensor's place in the buffer."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())

    def view(self, flat: Tensor) -> Tensor:
        """The tensor as part of `flat`."""
        part = flat[self.start : self.start + self.numel]
        if len(self.shape) < 4:
            return part.view(self.shape)
        out, channels, *kernel = self.shape
        return part.view(out, *kernel, channels).movedim(-1, 1)


@dataclass(frozen=True)
class Stack:
    """Matrices of one shape, side by side in the buffer."""

    start: int
    count: int
    rows: int
    columns: int

    def view(self, flat: Tensor) -> Tensor:
        return flat[self.start : self.start + self.count * self.rows * self.columns].view(self.count, self.rows, self.columns)


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


class FlatParameters:
    """The weights of `modules` in one buffer.

    `dtype` is what the modules compute in. If it is float32 the modules' parameters are views of the master weights
    themselves. Parameters that `precise(name, parameter)` picks stay float32 views whatever `dtype` is. Names are
    "<module>.<parameter>". Buffers of the modules are not touched.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        *,
        dtype: torch.dtype = torch.float32,
        matrix: Callable[[str, Tensor], bool] = _never,
        precise: Callable[[str, Tensor], bool] = _never,
    ) -> None:
        named = {f"{key}.{name}": p for key, module in modules.items() for name, p in module.named_parameters()}
        if not named:
            raise ValueError("there are no parameters to train")
        self.segments: list[Segment] = []
        self.stacks: list[Stack] = []
        self.size = 0
        self._place_matrices({n: p for n, p in named.items() if matrix(n, p)})
        self.matrices_end = self.size
        rest = {n: p for n, p in named.items() if not matrix(n, p)}
        self._place({n: p for n, p in rest.items() if p.ndim >= 2})
        self.decayed_end = self.size
        self._place({n: p for n, p in rest.items() if p.ndim < 2})

        device = next(iter(named.values())).device
        self.parameters = [named[segment.name] for segment in self.segments]
        self.master = torch.zeros(self.size, device=device)
        for segment, parameter in zip(self.segments, self.parameters):
            segment.view(self.master).copy_(parameter.detach())
        self.working = self.master if dtype == torch.float32 else self.master.to(dtype)
        for segment, parameter in zip(self.segments, self.parameters):
            parameter.data = segment.view(self.master if precise(segment.name, parameter) else self.working)
            parameter.requires_grad_(True)
        self.gradient = torch.zeros_like(self.master)
        self._gradient_views = [segment.view(self.gradient) for segment in self.segments]

    def _place(self, named: Mapping[str, Tensor]) -> None:
        for name, parameter in named.items():
            self.segments.append(Segment(name, tuple(parameter.shape), self.size))
            self.size += _aligned(parameter.numel())

    def _place_matrices(self, named: Mapping[str, Tensor]) -> None:
        def shape(item: tuple[str, Tensor]) -> tuple[int, ...]:
            return tuple(item[1].shape)

        for size, group in groupby(sorted(named.items(), key=shape), key=shape):
            members = list(group)
            rows, columns = size[0], int(torch.Size(size[1:]).numel())
            self.stacks.append(Stack(self.size, len(members), rows, columns))
            for i, (name, parameter) in enumerate(members):
                self.segments.append(Segment(name, tuple(parameter.shape), self.size + i * rows * columns))
            self.size += _aligned(len(members) * rows * columns)

    def forget_gradients(self) -> None:
        """Before a backward pass: gradients must be fresh tensors of that pass, or a captured graph would add to stale ones."""
        for parameter in self.parameters:
            parameter.grad = None

    def gather_gradients(self) -> Tensor:
        """The gradients as one float32 vector, valid until the next call; a parameter that got none counts as 0."""
        used = [(view, p.grad) for view, p in zip(self._gradient_views, self.parameters) if p.grad is not None]
        if len(used) < len(self.parameters):
            self.gradient.zero_()
        torch._foreach_copy_([view for view, _ in used], [grad for _, grad in used])
        return self.gradient

    def refresh(self) -> None:
        """Copies the master weights into the modules."""
        if self.working is not self.master:
            self.working.copy_(self.master)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """`flat` (master weights, moving average, ...) as tensors by name; views, not copies."""
        return {segment.name: segment.view(flat) for segment in self.segments}

    def of_module(self, key: str, flat: Tensor) -> dict[str, Tensor]:
        """The part of `flat` that belongs to module `key`, under the module's own names."""
        return {name[len(key) + 1 :]: tensor for name, tensor in self.named(flat).items() if name.startswith(f"{key}.")}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], *, into: Tensor | None = None) -> None:
        """Writes tensors by name into `into` (the master weights if None). Every name must be there, and no other."""
        missing = [s.name for s in self.segments if s.name not in tensors]
        unexpected = sorted(set(tensors) - {s.name for s in self.segments})
        if missing or unexpected:
            raise ValueError(f"the weights do not fit the model: missing {missing[:3]}, unexpected {unexpected[:3]}")
        target = self.master if into is None else into
        for segment in self.segments:
            segment.view(target).copy_(tensors[segment.name])
        self.refresh()


# --------------------------------------------------------------------------------------------------------- optimizer


def orthogonalised(stack: Tensor, *, rounds: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Each matrix of `stack` [n, rows, columns] with its singular values pushed to about 1, in `dtype`.

    Newton-Schulz iteration, on the side where the Gram matrix is smaller; a zero matrix stays zero.
    """
    a, b, c = NEWTON_SCHULZ
    tall = stack.shape[1] > stack.shape[2]
    x = stack / (torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True) + 1e-7)
    x = (x.mT if tall else x).to(dtype)
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@dataclass
class OptimizerState:
    """What a step changes besides the weights; flat like them."""

    ema: Tensor
    momentum: Tensor  # Muon's part
    mean: Tensor  # AdamW's part: first moment
    square: Tensor  # second moment
    steps: Tensor = field(default_factory=lambda: torch.zeros(()))  # float32, on the device


class Optimizer:
    """Steps `weights`. `rate` is a device tensor in [0, 1] that multiplies the learning rates; set it with `set_rate`.

    `step` reads nothing back to the host, so it can be part of a captured graph. A gradient that is not finite is
    replaced by zero: one bad batch then costs one step, not the run.
    """

    def __init__(self, weights: FlatParameters, config: OptimizerConfig) -> None:
        self.weights = weights
        self.config = config
        master, split = weights.master, weights.matrices_end
        self.rate = torch.ones((), device=master.device)
        self.gradient_norm = torch.zeros((), device=master.device)
        self.state = OptimizerState(
            ema=master.clone(),
            momentum=torch.zeros_like(master[:split]),
            mean=torch.zeros_like(master[split:]),
            square=torch.zeros_like(master[split:]),
            steps=torch.zeros((), device=master.device),
        )
        self._orthogonal_dtype = torch.bfloat16 if master.is_cuda else torch.float32

    def set_rate(self, rate: float) -> None:
        self.rate.fill_(rate)

    @torch.no_grad()
    def step(self) -> None:
        gradient = self._clipped(self.weights.gather_gradients())
        self.state.steps += 1
        split = self.weights.matrices_end
        if split:
            self._muon(gradient[:split])
        self._adamw(gradient[split:])
        self._average()
        self.weights.refresh()

    def _clipped(self, gradient: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(gradient)
        self.gradient_norm.copy_(norm)
        factor = (self.config.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        return torch.where(torch.isfinite(norm), gradient * factor, 0.0)

    def _muon(self, gradient: Tensor) -> None:
        config, momentum = self.config, self.state.momentum
        momentum.lerp_(gradient, 1 - config.momentum)
        update = gradient.lerp(momentum, config.momentum)  # Nesterov: look where the momentum is about to lead
        rate = self.rate * config.muon_lr
        self.weights.master[: self.weights.matrices_end].mul_(1 - rate * config.weight_decay)
        for stack in self.weights.stacks:
            direction = orthogonalised(stack.view(update), dtype=self._orthogonal_dtype)
            scale = max(1.0, stack.rows / stack.columns) ** 0.5
            stack.view(self.weights.master).sub_(direction.float() * (rate * scale))

    def _adamw(self, gradient: Tensor) -> None:
        config, state = self.config, self.state
        beta1, beta2 = config.betas
        state.mean.lerp_(gradient, 1 - beta1)
        state.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        rate = self.rate * config.lr
        root = (state.square / (1 - beta2**state.steps)).sqrt_().add_(config.eps)
        self.weights.master[self.weights.matrices_end : self.weights.decayed_end].mul_(1 - rate * config.weight_decay)
        self.weights.master[self.weights.matrices_end :].sub_(state.mean / root * (rate / (1 - beta1**state.steps)))

    def _average(self) -> None:
        """The moving average; its decay grows from 0.1, so that the random start is forgotten quickly."""
        steps = self.state.steps
        decay = torch.clamp((1 + steps) / (10 + steps), max=self.config.ema_decay)
        self.state.ema.lerp_(self.weights.master, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming bit for bit needs, on the CPU."""
        tensors = {"master": self.weights.master, **vars(self.state)}
        return {
            "layout": [(segment.name, segment.shape, segment.start) for segment in self.weights.segments],
            **{name: tensor.detach().cpu().clone() for name, tensor in tensors.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        layout = [(segment.name, segment.shape, segment.start) for segment in self.weights.segments]
        if [tuple(item) for item in state["layout"]] != layout:
            raise ValueError("the saved training state belongs to another model or another optimizer")
        self.weights.master.copy_(state["master"])
        for name, tensor in vars(self.state).items():
            tensor.copy_(state[name])
        self.weights.refresh()


def optimized(
    modules: Mapping[str, nn.Module],
    config: OptimizerConfig,
    *,
    dtype: torch.dtype,
    matrix: Callable[[str, Tensor], bool] = hidden_matrix,
    precise: Callable[[str, Tensor], bool] = _never,
) -> tuple[FlatParameters, Optimizer]:
    """The weights of `modules` and what steps them. Those that `matrix` picks are stepped by Muon, if `config` asks for it."""
    weights = FlatParameters(modules, dtype=dtype, matrix=matrix if config.kind == "muon" else _never, precise=precise)
    return weights, Optimizer(weights, config)
