"""Rotary embedding: stored tables and results of the published model, the two forms of the rotation, and its limits."""
from __future__ import annotations

import pytest
import torch
from reference import assert_close, case, tensors

from kinograph.models.dit import timestep_embedding
from kinograph.ops.rope import apply_rope, apply_rope_reference, axis_pairs, axis_turns, rope_table

CASE, DATA = case("units_rope_time"), tensors("units_rope_time")
POSITIONS = [0, 1, 2, 7, 44, 80, 255, 1023]


@pytest.mark.parametrize("head_dim", CASE["head_dims"])
def test_turns_are_the_published_ones(head_dim):
    turns = torch.cat([axis_turns(1024, pairs)[POSITIONS] for pairs in axis_pairs(head_dim)], dim=-1)
    assert_close(turns.real, DATA[f"out.rope.{head_dim}.cos"], CASE["tolerance"])
    assert_close(turns.imag, DATA[f"out.rope.{head_dim}.sin"], CASE["tolerance"])


@pytest.mark.parametrize("rotate", [apply_rope, apply_rope_reference])
@pytest.mark.parametrize("head_dim", CASE["head_dims"])
def test_rotation_is_the_published_one(head_dim, rotate):
    x, expected = DATA[f"in.rope.{head_dim}.x"], DATA[f"out.rope.{head_dim}.y"]
    table = rope_table(tuple(CASE["grids"][str(head_dim)]), head_dim)
    assert_close(rotate(x[:, : len(table)], table), expected[:, : len(table)], CASE["tolerance"])


@pytest.mark.parametrize("dim", [256, 10])
def test_timestep_embedding_is_the_published_one(dim):
    assert_close(timestep_embedding(DATA["time.t"], dim), DATA[f"out.time.{dim}"], CASE["tolerance"])


def test_table_order_and_offset():
    whole = rope_table((4, 3, 5), 20).view(4, 3, 5, 10)
    part = rope_table((2, 2, 3), 20, offset=(1, 1, 2)).view(2, 2, 3, 10)
    assert whole.dtype is torch.complex64 and torch.equal(part, whole[1:3, 1:3, 2:5])
    assert torch.equal(rope_table((1, 1, 1), 20, offset=(-2, 0, 0))[0], whole[2, 0, 0].conj())


def test_half_precision_is_rounded_once():
    x, table = torch.randn(2, 6, 3, 20), rope_table((1, 2, 3), 20)
    rotated = apply_rope(x.bfloat16(), table)
    assert rotated.dtype is torch.bfloat16
    assert torch.equal(rotated, apply_rope(x.bfloat16().float(), table).bfloat16())


def test_gradient_is_the_turn_back():
    x, table = torch.randn(1, 6, 2, 20, requires_grad=True), rope_table((1, 2, 3), 20)
    apply_rope(x, table).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())
