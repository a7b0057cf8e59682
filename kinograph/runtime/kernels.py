"""Which kernels a built model runs: a transform of the model, chosen once and said aloud."""
from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

from torch import nn

from kinograph.ops.attention import attention, choose

Model = TypeVar("Model", bound=nn.Module)


def set_attention(dit: Model, name: str) -> tuple[Model, str]:
    """`dit` with attention `name` ("auto" or one of `ops.attention.IMPLEMENTATIONS`) in every block, and what it is and why.

    Raises RuntimeSetupError if an implementation that was asked for by name cannot run this model on its device.
    """
    blocks: Any = dit.blocks
    # A norm's dtype is that of the computation, also where the linears are stored in 8 bits.
    weight = blocks[0].norm3.weight
    chosen, reason = choose(name, device=weight.device, dtype=weight.dtype, head_dim=blocks[0].self_attn.head_dim)
    for block in blocks:
        # "auto" stays "auto": it gives way to a kernel that masks where one sample is shorter than another.
        block.self_attn.attend = block.cross_attn.attend = partial(attention, implementation=name)
    return dit, f"{chosen} ({reason})"
