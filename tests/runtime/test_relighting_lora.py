"""The relighting LoRA of the animation model, in its published format, through the code that serves every LoRA."""
from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from animate_inputs import config, sample, weights
from reference import assert_close, case, tensors
from safetensors.torch import save_file
from seeded import seeded_tensor

from kinograph.checkpoints.lora_formats import model_shapes
from kinograph.config import ANIMATE_14B
from kinograph.errors import CheckpointError
from kinograph.models.dit_animate import AnimateDiT
from kinograph.runtime import lora as lora_module
from kinograph.runtime.lora import RELIGHTING, Lora, relighting_lora

GOLDEN = "animate_relighting_lora"


def build() -> AnimateDiT:
    return weights(AnimateDiT(config(case(GOLDEN)["config"])), case(GOLDEN)["weight_seed"])


@cache
def inputs() -> tuple:
    return sample(build(), case(GOLDEN)["sizes"], case(GOLDEN)["weight_seed"])


@torch.no_grad()
def run(model: torch.nn.Module) -> torch.Tensor:
    x, t, rest = inputs()
    return model(x, t, **vars(rest))[0]


def targets(model: torch.nn.Module) -> list[str]:
    """Every linear of the blocks: what the published LoRA was trained on."""
    return sorted(
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "blocks" in name and "face" not in name and "modulation" not in name
    )


def write(path: Path, model: torch.nn.Module, spelling: str) -> Path:
    """A LoRA file whose keys are spelled as `spelling`, with {path} and {half} for the module and A or B.

    A .ckpt has them under "state_dict", as the published one.
    """
    rank, seed = case(GOLDEN)["config"]["lora_rank"], case(GOLDEN)["lora_seed"]
    state = {}
    for name in targets(model):
        out_dim, in_dim = model.get_submodule(name).weight.shape
        for half, shape in (("A", (rank, in_dim)), ("B", (out_dim, rank))):
            state[spelling.format(path=name, half=half)] = seeded_tensor(f"{name}.lora_{half}.weight", shape, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".ckpt":
        torch.save({"epoch": 1, "state_dict": state}, path)
    else:
        save_file(state, path)
    return path


def test_targets():
    found = targets(build())
    assert len(found) == case(GOLDEN)["target_modules_count"]
    assert [name for name in found if name.startswith("blocks.0.")] == case(GOLDEN)["target_modules_of_block_0"]


def test_without():
    assert_close(run(build()), tensors(GOLDEN)["output_without"], case(GOLDEN)["tolerance"], "without")


@pytest.mark.parametrize("file", RELIGHTING)
@pytest.mark.parametrize(
    ("spelling", "mode"),
    [
        ("base_model.model.{path}.lora_{half}.weight", "fused"),
        ("base_model.model.{path}.lora_{half}.default.weight", "apart"),
        ("{path}.lora_{half}.weight", "fused"),
        ("{path}.lora_{half}.default.weight", "fused"),
    ],
)
def test_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, spelling: str, mode: str) -> None:
    model, data, tolerance = build(), tensors(GOLDEN), case(GOLDEN)["tolerance"]
    write(tmp_path / file, model, spelling)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(lora_module, "model_shapes", lambda spec: shapes)  # those of the small golden model
    lora = Lora(ANIMATE_14B, [relighting_lora(tmp_path)], mode=mode)
    assert all("stores no alpha" in note for note in lora.notes)
    assert_close(run(lora(model, "all_noise")), data["output_with"], tolerance, "with")


def test_the_published_targets_are_all_in_the_model() -> None:
    shapes = model_shapes(ANIMATE_14B)
    spellings = {name.removesuffix(".weight") for name in shapes}
    assert "blocks.39.cross_attn.v_img" in spellings and "face_adapter.fuser_blocks.7.linear2" in spellings


def test_a_folder_without_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks relighting_lora/adapter_model.safetensors and relighting_lora.ckpt"):
        relighting_lora(tmp_path)
