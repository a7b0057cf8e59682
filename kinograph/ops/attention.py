"""Attention: out = softmax(q kᵀ / √D) v, over heads, without causal mask.

    q [B, L, N, D], k and v [B, M, N, D] -> out [B, L, N, D], in the dtype of q

`attention` runs one of `IMPLEMENTATIONS`; `attention_reference` is the same in plain float32 and is what they are tested
against. Which one "auto" means depends on device, dtype and head size alone and is said by `choose`:

    NVIDIA, compute capability 9 and up   cudnn   (PyTorch's own flash kernel is the older generation: half the speed there)
    other CUDA and ROCm devices           flash
    everything else                       sdpa    (PyTorch decides)

A name that the caller gives is never replaced: it runs, or `RuntimeSetupError` says why it cannot.
"""
from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinograph.errors import RuntimeSetupError

Kernel = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]  # (q, k, v, mask [B, 1, 1, M]) -> out
WhyNot = Callable[[torch.device, torch.dtype, int], "str | None"]  # (device, dtype, head_dim) -> reason, None if it can run

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """A kernel, where it can run, and whether it can mask keys by sample."""

    run: Kernel
    why_not: WhyNot
    masks: bool


def attention(q: Tensor, k: Tensor, v: Tensor, *, kv_len: int | Tensor | None = None, implementation: str = "auto") -> Tensor:
    """[B, L, N, D]: each query's mean of `v`, weighted by the softmax of its products with `k`.

    `kv_len` hides the keys from that position on: an int for all samples (exact and free: they are cut off), or an
    integer tensor [B], one per sample. q, k and v share device and dtype.
    Raises `RuntimeSetupError` if `implementation` is unknown, cannot run here, or cannot mask by sample.
    """
    if isinstance(kv_len, int):
        k, v = k[:, :kv_len], v[:, :kv_len]
        kv_len = None
    name = _chosen(implementation, q.device, q.dtype, q.shape[-1])
    if kv_len is None:
        return IMPLEMENTATIONS[name].run(q, k, v, None)
    return IMPLEMENTATIONS[_masking(name, implementation)].run(q, k, v, _key_mask(kv_len, k.shape[1]))


def attention_reference(q: Tensor, k: Tensor, v: Tensor, *, kv_len: int | Tensor | None = None) -> Tensor:
    """The formula in float32; needs memory for [B, N, L, M] scores."""
    scores = torch.einsum("blnd,bmnd->bnlm", q.float(), k.float()) / q.shape[-1] ** 0.5
    if kv_len is not None:
        lengths = torch.as_tensor(kv_len, device=q.device).expand(q.shape[0])
        scores = scores.masked_fill(~_key_mask(lengths, k.shape[1]), float("-inf"))
    return torch.einsum("bnlm,bmnd->blnd", scores.softmax(dim=-1), v.float()).to(q.dtype)


def choose(name: str, *, device: torch.device | str, dtype: torch.dtype, head_dim: int) -> tuple[str, str]:
    """(implementation, why it): what `name` stands for on this device, with this dtype and head size.

    Raises `RuntimeSetupError` if `name` is unknown or cannot run.
    """
    device = torch.device(device)
    if name == "auto":
        return _choose_best(device, dtype, head_dim)
    if name not in IMPLEMENTATIONS:
        raise RuntimeSetupError(f"unknown attention {name!r}; choose auto, {', '.join(IMPLEMENTATIONS)}")
    reason = IMPLEMENTATIONS[name].why_not(device, dtype, head_dim)
    if reason is not None:
        raise RuntimeSetupError(f"attention {name!r} cannot run here: {reason}; use 'auto', or one that can")
    return name, "as asked"


# ------------------------------------------------------------------------------------------------------- kernels


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    # Transposed views, not copies: every backend takes any strides, and all but math answer in the layout of q.
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2)


def _sdpa_backend(backend: SDPBackend) -> Kernel:
    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        with sdpa_kernel(backend):
            return _sdpa(q, k, v, mask)

    return run


def _flash_attn_3(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out  # earlier releases return (out, log-sum-exp)


def _key_mask(kv_len: Tensor, num_keys: int) -> Tensor:
    return (torch.arange(num_keys, device=kv_len.device) < kv_len[:, None])[:, None, None, :]  # [B, 1, 1, M]


# ------------------------------------------------------------------------------------------------ where they run


def _anywhere(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    return None


def _on_cuda(*, dtypes: tuple[torch.dtype, ...], capability: tuple[int, int], max_head_dim: int, multiple: int) -> WhyNot:
    def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        if device.type != "cuda" or not torch.cuda.is_available():
            return f"it needs a CUDA device, got {str(device)!r}"
        if dtype not in dtypes:
            return f"it takes {' or '.join(str(d).removeprefix('torch.') for d in dtypes)}, got {str(dtype).removeprefix('torch.')}"
        if head_dim > max_head_dim or head_dim % multiple:
            return f"it takes head sizes up to {max_head_dim} that are multiples of {multiple}, got {head_dim}"
        found = torch.cuda.get_device_capability(device)
        if torch.version.hip is None and found < capability:
            return f"it needs compute capability {_dotted(capability)}, this device has {_dotted(found)}"
        return None

    return why_not


_cudnn_limits = _on_cuda(dtypes=_HALF, capability=(8, 0), max_head_dim=128, multiple=8)
_flash_attn_3_limits = _on_cuda(dtypes=_HALF, capability=(9, 0), max_head_dim=256, multiple=8)


def _why_not_cudnn(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if torch.version.cuda is None or not torch.backends.cudnn.is_available():
        return "this PyTorch is built without cuDNN"
    return _cudnn_limits(device, dtype, head_dim)


def _why_not_flash_attn_3(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if importlib.util.find_spec("flash_attn_interface") is None:
        return "the package flash_attn_interface (FlashAttention 3) is not installed"
    return _flash_attn_3_limits(device, dtype, head_dim)


IMPLEMENTATIONS: dict[str, Implementation] = {
    "cudnn": Implementation(run=_sdpa_backend(SDPBackend.CUDNN_ATTENTION), why_not=_why_not_cudnn, masks=False),
    "flash": Implementation(
        run=_sdpa_backend(SDPBackend.FLASH_ATTENTION),
        why_not=_on_cuda(dtypes=_HALF, capability=(8, 0), max_head_dim=256, multiple=8),
        masks=False,
    ),
    "flash_attn_3": Implementation(run=_flash_attn_3, why_not=_why_not_flash_attn_3, masks=False),
    "efficient": Implementation(
        run=_sdpa_backend(SDPBackend.EFFICIENT_ATTENTION),
        why_not=_on_cuda(dtypes=(torch.float32, *_HALF), capability=(5, 0), max_head_dim=1024, multiple=8),
        masks=True,
    ),
    "math": Implementation(run=_sdpa_backend(SDPBackend.MATH), why_not=_anywhere, masks=True),
    "sdpa": Implementation(run=_sdpa, why_not=_anywhere, masks=True),
}


# -------------------------------------------------------------------------------------------------------- choice


def _choose_best(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, str]:
    if device.type != "cuda":
        return "sdpa", f"PyTorch's own choice on {device.type}"
    reasons = []
    for name in _by_speed(device):
        reason = IMPLEMENTATIONS[name].why_not(device, dtype, head_dim)
        if reason is None:
            return name, f"fastest on {torch.cuda.get_device_name(device)}"
        reasons.append(f"not {name}: {reason}")
    return "sdpa", "; ".join(reasons)


def _by_speed(device: torch.device) -> tuple[str, ...]:
    return ("cudnn", "flash") if torch.cuda.get_device_capability(device) >= (9, 0) else ("flash",)


@functools.cache
def _cached_choice(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    return choose(name, device=device, dtype=dtype, head_dim=head_dim)[0]


@torch.compiler.assume_constant_result
def _chosen(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    return _cached_choice(name, device, dtype, head_dim)


def _masking(name: str, asked: str) -> str:
    if IMPLEMENTATIONS[name].masks:
        return name
    if asked == "auto":
        return "sdpa"
    able = ", ".join(key for key, implementation in IMPLEMENTATIONS.items() if implementation.masks)
    raise RuntimeSetupError(f"attention {name!r} cannot mask keys by sample (kv_len is a tensor); use one of auto, {able}")


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
