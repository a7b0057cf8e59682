"""Trainable low-rank changes of a frozen model's linears, and the PEFT adapter that they are saved as."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

ADAPTER_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


class LowRank(nn.Module):
    """The change B·A of one linear; it starts as zero."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        device = linear.weight.device
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, device=device)
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, device=device)
        nn.init.normal_(self.lora_A.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.lora_B.weight)


def in_blocks(name: str) -> bool:
    """The linears that the published relighting LoRA changes."""
    return "blocks" in name and "face" not in name and "modulation" not in name


def adapt(model: nn.Module, rank: int, wanted: Callable[[str], bool] = in_blocks) -> nn.ModuleDict:
    """Freezes `model` and adds a trainable change to each linear whose name is `wanted`: the changes, by name with "/" for "."."""
    model.requires_grad_(False)
    changes = nn.ModuleDict()
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear) and wanted(name):
            change = LowRank(linear, rank)
            changes[name.replace(".", "/")] = change
            linear.__dict__["forward"] = _changed(linear, change)  # over the method of its class
    return changes


def _changed(linear: nn.Linear, change: LowRank) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return F.linear(x, linear.weight, linear.bias) + change.lora_B(change.lora_A(x))

    return forward


def adapter_tensors(changes: nn.ModuleDict | dict[str, Tensor]) -> dict[str, Tensor]:
    """The changes, or tensors under the names of their state dict, under the names that PEFT gives them."""
    state = changes.state_dict() if isinstance(changes, nn.ModuleDict) else changes
    return {PREFIX + name.replace("/", "."): tensor for name, tensor in state.items()}


def save_adapter(tensors: dict[str, Tensor], folder: str | Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Writes `adapter_model.safetensors`. The strength is alpha/rank = 1, which a file without alpha means."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}, folder / ADAPTER_FILE)
    return folder / ADAPTER_FILE
