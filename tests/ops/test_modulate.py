"""Modulation against its formulas, for every grouping of tokens to rows."""
from __future__ import annotations

import pytest
import torch

from kinograph.ops.modulate import (
    gated_add,
    gated_add_reference,
    modulate,
    modulate_reference,
    modulated_norm,
    modulated_norm_reference,
)


def tokens_and_rows(batch: int, rows: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch + rows)
    x, y = (torch.randn(batch, 12, 16, generator=generator) for _ in range(2))
    return x, y.to(dtype), *(torch.randn(batch, rows, 16, generator=generator) for _ in range(2))


GROUPINGS = pytest.mark.parametrize(("batch", "rows"), [(1, 1), (2, 1), (1, 3), (2, 4), (2, 12)])


@GROUPINGS
def test_modulate(batch, rows):
    x, _, shift, scale = tokens_and_rows(batch, rows)
    torch.testing.assert_close(modulate(x, shift, scale), modulate_reference(x, shift, scale))


@GROUPINGS
def test_modulated_norm(batch, rows):
    x, _, shift, scale = tokens_and_rows(batch, rows)
    expected = modulated_norm_reference(x, shift, scale, eps=1e-6)
    torch.testing.assert_close(modulated_norm(x, shift, scale, eps=1e-6), expected, rtol=1e-5, atol=1e-5)


@GROUPINGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_add(batch, rows, dtype):
    x, y, gate, _ = tokens_and_rows(batch, rows, dtype)
    out = gated_add(x, y, gate)
    assert out.dtype is torch.float32
    torch.testing.assert_close(out, gated_add_reference(x, y, gate))


def test_gradients_reach_rows_and_half_precision_tokens():
    x, y, gate, _ = (tensor.requires_grad_() for tensor in tokens_and_rows(2, 3, torch.bfloat16))
    gated_add(x, y, gate).sum().backward()
    assert y.grad.dtype is torch.bfloat16
    torch.testing.assert_close(gate.grad, y.detach().float().unflatten(1, (3, 4)).sum(2))


def test_rows_must_divide_the_tokens():
    x, _, shift, scale = tokens_and_rows(1, 5)
    with pytest.raises(RuntimeError):
        modulate(x, shift, scale)
