"""The trainer: exact resumes, the flat weights, the optimizers, the files that travel."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kinograph.errors import CheckpointError
from kinograph.training.loss import edge_loss, kl_to_standard_normal, velocity_loss
from kinograph.training.optim import FlatParameters, Optimizer, OptimizerConfig, hidden_kernel, hidden_matrix, orthogonalised
from kinograph.training.parts import load_parts, save_parts
from kinograph.training.trainer import Phase, TrainConfig, Trainer


class Net(nn.Module):
    """Something of everything: hidden matrices of two shapes, a convolution, a table, a norm, a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(2, 8, (1, 2, 2), stride=(1, 2, 2))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embedding(x).flatten(2).mean(-1)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


def make_trainer(kind: str = "muon", *, steps: int = 6, net: nn.Module | None = None, quiet: bool = True) -> Trainer:
    torch.manual_seed(3)
    net = net or Net()
    matrix = {"matrix": hidden_matrix} if kind == "muon" else {}
    weights = FlatParameters({"net": net}, **matrix)

    def loss() -> Mapping[str, Tensor]:
        x = torch.randn(4, 2, 1, 4, 4)
        return {"loss": (net(x) - x.mean((2, 3, 4))).square().mean()}

    def doubled() -> Mapping[str, Tensor]:
        return {name: 2 * value for name, value in loss().items()}

    config = TrainConfig(budget_steps=steps, warmup_steps=2)
    optimizer = Optimizer(weights, OptimizerConfig(kind=kind))
    phases = [Phase("first", loss, until=0.7), Phase("second", doubled)]
    return Trainer(weights, optimizer, phases, config, report=lambda line: None if quiet else print(line))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_resumed_run_is_the_same_bit_for_bit(kind: str, tmp_path: Path) -> None:
    straight = make_trainer(kind)
    straight.run()

    first = make_trainer(kind)
    first.run(max_steps=3)
    assert not first.finished
    first.save(tmp_path / "state.pt")
    torch.manual_seed(99)  # whatever happened in between must not matter
    second = make_trainer(kind)
    second.load(tmp_path / "state.pt")
    second.run()

    assert second.finished and second.step == straight.step == 6
    assert torch.equal(second.weights.master, straight.weights.master)
    assert torch.equal(second.optimizer.state.ema, straight.optimizer.state.ema)


def test_a_light_resume_keeps_the_weights_and_warms_up_again() -> None:
    trainer = make_trainer()
    trainer.run(max_steps=4)
    resumed = make_trainer()
    resumed.start_from(trainer.weights.named(trainer.weights.master), step=trainer.step, seconds=0.0)
    assert torch.equal(resumed.weights.master, trainer.weights.master)
    assert resumed.progress == trainer.progress
    resumed.run(max_steps=1)
    assert resumed.optimizer.rate.item() < trainer.optimizer.rate.item()


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    make_trainer("adamw").save(tmp_path / "state.pt")
    with pytest.raises(ValueError, match="another model"):
        make_trainer("muon").load(tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="no training state"):
        make_trainer().load(tmp_path / "absent.pt")


def test_the_learning_rate_warms_up_and_falls() -> None:
    config = TrainConfig(budget_steps=100, warmup_steps=10)
    assert config.rate(0.0, 0) == pytest.approx(0.1)
    assert config.rate(0.0, 50) == pytest.approx(1.0)
    assert config.rate(1.0, 50) == pytest.approx(config.final_rate)
    linear = TrainConfig(budget_seconds=10.0, decay="linear", warmup_steps=0)
    assert linear.rate(0.4, 0) == pytest.approx(1.0) and linear.rate(1.0, 0) == pytest.approx(linear.final_rate)
    assert linear.progress(step=1000, seconds=2.5) == 0.25
    with pytest.raises(ValueError, match="either"):
        TrainConfig()


def test_a_time_budget_ends_the_run() -> None:
    trainer = make_trainer()
    trainer.config = TrainConfig(budget_seconds=0.2, warmup_steps=0)
    trainer.run()
    assert trainer.finished and trainer.step > 1
    assert trainer.optimizer.rate.item() < 0.5


# --------------------------------------------------------------------------------------------------- flat parameters


def test_flattening_changes_no_result_and_shares_memory() -> None:
    net, x = Net(), torch.randn(2, 2, 1, 4, 4)
    before = net(x)
    weights = FlatParameters({"net": net}, matrix=hidden_matrix)
    assert torch.allclose(net(x), before, atol=1e-6)
    assert [(stack.count, stack.rows, stack.columns) for stack in weights.stacks] == [(3, 8, 16), (3, 16, 8)]
    weights.master.zero_()
    assert net(x).abs().max() == 0
    assert set(weights.of_module("net", weights.master)) == set(dict(net.named_parameters()))


def test_low_precision_copies_follow_the_master_weights() -> None:
    net = Net()
    weights = FlatParameters({"net": net}, dtype=torch.bfloat16, precise=lambda name, p: "head" in name)
    assert net.blocks[0][0].weight.dtype == torch.bfloat16 and net.head.weight.dtype == torch.float32
    weights.master.fill_(0.5)
    weights.refresh()
    assert (net.blocks[0][0].weight == 0.5).all() and (net.head.weight == 0.5).all()


def test_gradients_are_gathered_where_the_weights_are() -> None:
    net = Net()
    weights = FlatParameters({"net": net}, matrix=hidden_matrix)
    net(torch.randn(2, 2, 1, 4, 4)).square().sum().backward()
    gathered = weights.named(weights.gather_gradients())
    for name, parameter in net.named_parameters():
        assert torch.equal(gathered[f"net.{name}"], parameter.grad)
    net.head.weight.grad = None
    assert weights.named(weights.gather_gradients())["net.head.weight"].abs().max() == 0


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = FlatParameters({"net": Net()})
    with pytest.raises(ValueError, match="missing"):
        weights.load({"net.head.weight": torch.zeros(2, 8)})


# -------------------------------------------------------------------------------------------------------- optimizers


def test_adamw_equals_pytorchs() -> None:
    mine, theirs = Net(), Net()
    theirs.load_state_dict(mine.state_dict())
    config = OptimizerConfig(kind="adamw", lr=0.01, weight_decay=0.1, clip_norm=1e9)
    optimizer = Optimizer(FlatParameters({"net": mine}), config)
    decayed = [p for p in theirs.parameters() if p.ndim >= 2]
    plain = [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=config.betas, eps=config.eps)
    for i in range(5):
        x = torch.randn(4, 2, 1, 4, 4, generator=torch.Generator().manual_seed(i))
        for net in (mine, theirs):
            net.zero_grad(set_to_none=True)
            net(x).square().mean().backward()
        optimizer.step()
        reference.step()
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters()):
        assert torch.allclose(a, b, atol=2e-6), name


@pytest.mark.parametrize("shape", [(2, 12, 30), (2, 30, 12), (1, 16, 16)])
def test_orthogonalising_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(stack, dtype=torch.float32))
    assert values.min() > 0.5 and values.max() < 1.4
    assert orthogonalised(torch.zeros(shape)).abs().max() == 0


def test_a_gradient_that_is_not_finite_changes_nothing_for_good() -> None:
    net = Net()
    optimizer = Optimizer(FlatParameters({"net": net}, matrix=hidden_matrix), OptimizerConfig())
    net(torch.full((1, 2, 1, 4, 4), float("nan"))).sum().backward()
    optimizer.step()
    assert torch.isfinite(optimizer.weights.master).all()


def test_muon_takes_the_matrices_inside_blocks_alone() -> None:
    assert hidden_matrix("dit.blocks.0.ffn.0.weight", torch.zeros(4, 4))
    for name in ("dit.head.head.weight", "dit.text_embedding.0.weight", "text_encoder.blocks.0.pos_embedding.embedding.weight"):
        assert not hidden_matrix(name, torch.zeros(4, 4))
    assert hidden_kernel("vae.encoder.x", torch.zeros(16, 16, 3, 3, 3)) and not hidden_kernel("vae.conv1", torch.zeros(96, 96, 1, 1, 1))


# ------------------------------------------------------------------------------------------------------------- files


def test_parts_are_small_and_join_again(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(100) for i in range(5)}
    files = save_parts(tensors, tmp_path, "dit", metadata={"step": "7"}, dtype=torch.float32, limit=900)
    assert len(files) == 3
    joined, metadata = load_parts(tmp_path, "dit")
    assert metadata["step"] == "7" and set(joined) == set(tensors)
    assert all(torch.equal(joined[name], tensor) for name, tensor in tensors.items())
    files[1].unlink()
    with pytest.raises(CheckpointError, match="2 of the 3 parts"):
        load_parts(tmp_path, "dit")
    with pytest.raises(CheckpointError, match="train it first"):
        load_parts(tmp_path, "vae")


# ------------------------------------------------------------------------------------------------------------ losses


def test_known_latents_do_not_count() -> None:
    x0, noise = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2)
    known = torch.zeros(2, 1, 4, 1, 1)
    known[:, :, 0] = 1
    velocity = noise - x0
    velocity[:, :, 0] = 100
    assert velocity_loss(velocity, x0, noise, known) == 0
    assert velocity_loss(velocity + 1, x0, noise, known) == pytest.approx(1.0)
    assert velocity_loss(noise - x0, x0, noise) == 0


def test_parts_of_the_vae_loss() -> None:
    assert kl_to_standard_normal(torch.zeros(4), torch.zeros(4)) == 0
    assert edge_loss(torch.full((1, 3, 5, 8, 8), 0.3)) == pytest.approx(0.0)
