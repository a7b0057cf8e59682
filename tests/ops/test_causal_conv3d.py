"""The causal convolution: equal to its formula, in one pass and in chunks, with a cache that keeps no more than it must."""
from __future__ import annotations

import pytest
import torch

from kinograph.ops.causal_conv3d import CausalConv3d, StreamCache, causal_conv3d, causal_conv3d_reference, stream, with_history


def _tensors(kernel: tuple[int, int, int], *, frames: int = 7, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, frames, 6, 4, generator=generator)
    weight = torch.randn(3, 5, *kernel, generator=generator) / 10
    return x.to(dtype), weight.to(dtype), torch.randn(3, generator=generator).to(dtype)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 1, 1), (2, 3, 3)])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_one_pass_is_the_formula(kernel: tuple[int, int, int], frames: int) -> None:
    x, weight, bias = _tensors(kernel, frames=frames)
    padding = (kernel[1] // 2, kernel[2] // 2)
    out = causal_conv3d(with_history(x, None, kernel[0] - 1), weight, bias, padding=padding)
    torch.testing.assert_close(out, causal_conv3d_reference(x, weight, bias, padding=padding))


def test_half_precision_is_as_close_as_its_rounding() -> None:
    x, weight, bias = _tensors((3, 3, 3), dtype=torch.bfloat16)
    out = causal_conv3d(with_history(x, None, 2), weight, bias, padding=(1, 1))
    assert out.dtype == torch.bfloat16
    expected = causal_conv3d_reference(x, weight, bias, padding=(1, 1))
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2**-7)


@pytest.mark.parametrize("sizes", [(7,), (1, 6), (1, 1, 1, 1, 1, 1, 1), (2, 1, 4), (5, 2)])
def test_chunks_equal_one_pass(sizes: tuple[int, ...]) -> None:
    x, weight, bias = _tensors((3, 3, 3))
    conv = CausalConv3d(5, 3, (3, 3, 3))
    conv.load_state_dict({"weight": weight, "bias": bias})
    out = torch.cat([conv(conv.with_history(chunk, cache)) for chunk, cache in stream(x, sizes)], dim=2)
    torch.testing.assert_close(out, causal_conv3d_reference(x, weight, bias, padding=(1, 1)))


def test_stream_says_where_the_clip_begins_and_ends() -> None:
    places = [(cache.first, cache.last) for _, cache in stream(torch.zeros(1, 1, 6, 1, 1), (1, 3, 2))]
    assert places == [(True, False), (False, False), (False, True)]


def test_the_cache_owns_only_the_frames_it_keeps() -> None:
    cache, x = StreamCache(last=False), torch.randn(1, 2, 50, 3, 3)
    cache.put("layer", x, 2)
    kept = cache.take("layer")
    assert torch.equal(kept, x[:, :, -2:])
    assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()
    assert cache.take("layer") is None


def test_nothing_is_kept_after_the_last_chunk() -> None:
    cache = StreamCache()
    cache.put("layer", torch.zeros(1, 1, 3, 1, 1), 2)
    assert cache.take("layer") is None


def test_a_single_frame_is_not_copied() -> None:
    x = torch.randn(1, 2, 1, 3, 3)
    assert with_history(x, None, 2) is x
