"""Classifier-free guidance: away from what the negative prompt gives, towards what the prompt gives.

The two model passes of a step are independent. `in_turn` runs one after the other; `batched` runs them as one batch; a function
of the same signature may spread them over two ranks.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from kinograph.sampling.conditioning import Conditioning

Model = Callable[..., Tensor]  # (x, t, **inputs) -> velocity
BothPasses = Callable[[Model, Tensor, Tensor, Any, Any], tuple[Tensor, Tensor]]


def in_turn(model: Model, x: Tensor, t: Tensor, positive: Any, negative: Any) -> tuple[Tensor, Tensor]:
    """The velocities for both inputs, one pass after the other: least memory."""
    return model(x, t, **vars(positive)), model(x, t, **vars(negative))


def batched(model: Model, x: Tensor, t: Tensor, positive: Any, negative: Any) -> tuple[Tensor, Tensor]:
    """The velocities for both inputs from one pass over a doubled batch: faster where one sample leaves the device idle."""
    inputs = {field.name: _joined(getattr(positive, field.name), getattr(negative, field.name)) for field in fields(positive)}
    towards, away = model(torch.cat((x, x)), torch.cat((t, t)), **inputs).chunk(2)
    return towards, away


def guided_velocity(
    model: Model, x: Tensor, t: Tensor, conditioning: Conditioning, scale: float, *, passes: BothPasses = in_turn
) -> Tensor:
    """negative + scale * (positive - negative), in float32. Scale 1 is the positive pass alone, and runs no other."""
    if scale == 1:
        return model(x, t, **vars(conditioning.positive)).float()
    towards, away = passes(model, x, t, conditioning.positive, conditioning.negative)
    towards, away = towards.float(), away.float()
    return away.add(towards - away, alpha=scale)


def _joined(positive: Any, negative: Any) -> Any:
    """Two values of one input as a batch; what is not a tensor must be the same for both."""
    if isinstance(positive, Tensor) and isinstance(negative, Tensor):
        return torch.cat((positive, negative))
    assert positive is negative or positive == negative, f"cannot batch {positive!r} with {negative!r}"
    return positive
