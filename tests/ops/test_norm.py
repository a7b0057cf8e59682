"""Norms against their float32 formulas."""
from __future__ import annotations

import pytest
import torch

from kinograph.ops.norm import layer_norm, layer_norm_reference, rms_norm, rms_norm_reference

EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(dtype, affine):
    x = 3 + 100 * random(2, 7, 48, dtype=dtype)
    weights = (random(48, dtype=dtype), random(48, dtype=dtype)) if affine else ()
    out = layer_norm(x, *weights, eps=EPS)
    assert out.dtype is torch.float32
    torch.testing.assert_close(out, layer_norm_reference(x, *weights, eps=EPS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype):
    x, weight = 100 * random(2, 7, 48, dtype=dtype), 1 + random(48)
    out = rms_norm(x, weight, eps=EPS)
    exact = rms_norm_reference(x.float(), weight.to(dtype).float(), eps=EPS)
    assert out.dtype is dtype
    torch.testing.assert_close(out.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_float16_sums_do_not_overflow():
    x = torch.full((1, 4096), 200.0, dtype=torch.float16)
    assert torch.equal(rms_norm(x, torch.ones(4096), eps=EPS), torch.ones_like(x))
