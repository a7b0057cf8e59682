"""Attention: every implementation that runs here against the float32 reference, key masking, and the choice among them."""
from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from kinograph.errors import RuntimeSetupError
from kinograph.ops import attention as module
from kinograph.ops.attention import IMPLEMENTATIONS, attention, attention_reference, choose

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = (torch.bfloat16, torch.float16)


def random_qkv(*, dtype: torch.dtype, queries: int = 70, keys: int = 130, heads: int = 3, head_dim: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((2, length, heads, head_dim) for length in (queries, keys, keys))
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return (actual.float() - exact).abs().max().item()


def skip_unless_it_runs(name: str, dtype: torch.dtype) -> None:
    reason = IMPLEMENTATIONS[name].why_not(torch.device(DEVICE), dtype, 64)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_the_reference(name, dtype):
    """At most twice the error that the plain formula makes in the same dtype."""
    skip_unless_it_runs(name, dtype)
    q, k, v = random_qkv(dtype=dtype)
    exact = attention_reference(q.float(), k.float(), v.float())
    scores = torch.einsum("blnd,bmnd->bnlm", q, k) / 8
    plain = torch.einsum("bnlm,bmnd->blnd", scores.softmax(dim=-1), v)
    out = attention(q, k, v, implementation=name)
    assert out.shape == q.shape and out.dtype == dtype
    assert error(out, exact) <= 2 * error(plain, exact) + 1e-6


@pytest.mark.parametrize("name", [name for name, implementation in IMPLEMENTATIONS.items() if implementation.masks])
def test_keys_are_masked_by_sample(name):
    skip_unless_it_runs(name, torch.float32)
    q, k, v = random_qkv(dtype=torch.float32)
    out = attention(q, k, v, kv_len=torch.tensor([130, 17], device=DEVICE), implementation=name)
    expected = torch.cat([attention_reference(q[:1], k[:1], v[:1]), attention_reference(q[1:], k[1:, :17], v[1:, :17])])
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_an_int_masks_all_samples_alike():
    q, k, v = random_qkv(dtype=torch.float32)
    expected = attention_reference(q, k[:, :17], v[:, :17])
    torch.testing.assert_close(attention(q, k, v, kv_len=17), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(attention_reference(q, k, v, kv_len=17), expected, rtol=1e-5, atol=1e-5)


def test_the_result_needs_no_copy_to_join_heads():
    out = attention(*random_qkv(dtype=torch.bfloat16))
    assert out.flatten(2).data_ptr() == out.data_ptr()


def test_gradients_match_the_reference():
    inputs = [x.requires_grad_() for x in random_qkv(dtype=torch.float32)]
    actual = torch.autograd.grad(attention(*inputs).square().sum(), inputs)
    expected = torch.autograd.grad(attention_reference(*inputs).square().sum(), inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- choice


def on_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Makes the choice believe in an NVIDIA device of that capability."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "test GPU")
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "expected"),
    [
        ((9, 0), torch.bfloat16, 128, "cudnn"),
        ((10, 0), torch.float16, 64, "cudnn"),
        ((9, 0), torch.bfloat16, 256, "flash"),
        ((8, 0), torch.bfloat16, 128, "flash"),
        ((7, 5), torch.float16, 128, "sdpa"),
        ((9, 0), torch.float32, 128, "sdpa"),
        ((9, 0), torch.bfloat16, 12, "sdpa"),
    ],
)
def test_auto_on_cuda(monkeypatch, capability, dtype, head_dim, expected):
    on_cuda(monkeypatch, capability)
    name, reason = choose("auto", device="cuda", dtype=dtype, head_dim=head_dim)
    assert name == expected and reason


def test_auto_on_cpu():
    assert choose("auto", device="cpu", dtype=torch.float32, head_dim=20) == ("sdpa", "PyTorch's own choice on cpu")


def test_a_named_implementation_is_never_replaced(monkeypatch):
    on_cuda(monkeypatch, (8, 0))
    assert choose("cudnn", device="cuda", dtype=torch.bfloat16, head_dim=128) == ("cudnn", "as asked")
    with pytest.raises(RuntimeSetupError, match="'flash' cannot run here: it takes bfloat16 or float16, got float32"):
        choose("flash", device="cuda", dtype=torch.float32, head_dim=128)
    with pytest.raises(RuntimeSetupError, match="multiples of 8, got 12"):
        choose("flash", device="cuda", dtype=torch.bfloat16, head_dim=12)
    with pytest.raises(RuntimeSetupError, match=r"flash_attn_interface .* is not installed"):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
        choose("flash_attn_3", device="cuda", dtype=torch.bfloat16, head_dim=128)


def test_errors_name_what_would_work():
    with pytest.raises(RuntimeSetupError, match="unknown attention 'fast'; choose auto, cudnn, flash"):
        choose("fast", device="cpu", dtype=torch.float32, head_dim=64)
    with pytest.raises(RuntimeSetupError, match="'flash' cannot run here: it needs a CUDA device, got 'cpu'"):
        choose("flash", device="cpu", dtype=torch.bfloat16, head_dim=64)
    with pytest.raises(RuntimeSetupError, match=r"'cudnn' cannot mask .* use one of auto, efficient, math, sdpa"):
        module._masking("cudnn", "cudnn")
    assert module._masking("cudnn", "auto") == "sdpa"


@pytest.mark.parametrize("returns", [lambda q, k, v: q, lambda q, k, v: (q, None)], ids=["tensor", "tuple"])
def test_both_answers_of_flash_attention_3_are_understood(monkeypatch, returns):
    monkeypatch.setitem(sys.modules, "flash_attn_interface", SimpleNamespace(flash_attn_func=returns))
    q, k, v = random_qkv(dtype=torch.bfloat16)
    assert IMPLEMENTATIONS["flash_attn_3"].run(q, k, v, None) is q
