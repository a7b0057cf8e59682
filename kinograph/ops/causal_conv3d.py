"""Causal 3D convolution over a clip that may arrive in chunks.

    out[t] = bias + sum over k of weight[k] * x[t - (K - 1) + k],   x[t] = 0 for t < 0

where K is the temporal kernel size and `*` the 2D convolution of a frame, zero-padded on all sides. A frame sees itself
and the K - 1 frames before it, so a chunk needs those frames from the chunk before: its *history*. The history lives in
a `StreamCache`, a value that belongs to one encode or decode call; layers hold nothing between calls, and any number of
clips may pass through the same layers at once. A whole clip is the chunk that is both first and last.

Shapes: frames are `[B, C, T, H, W]`, weights `[C_out, C_in, K, kh, kw]`.
"""
from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StreamCache:
    """What the layers remember of one clip between its chunks, and where in the clip the chunk at hand is.

    `first`: the chunk opens the clip; `last`: it ends the clip, so nothing is kept. Layers put in and take out their
    own frames, under themselves as the key.
    """

    def __init__(self, *, first: bool = True, last: bool = True) -> None:
        self.first = first
        self.last = last
        self._frames: dict[Hashable, Tensor] = {}

    def take(self, layer: Hashable) -> Tensor | None:
        """The frames that `layer` put in at the chunk before, given up by the cache; None if there are none."""
        return self._frames.pop(layer, None)

    def put(self, layer: Hashable, x: Tensor, count: int) -> None:
        """Keep the last `count` frames of `x` (all of them, if it has fewer) for the next chunk."""
        if not self.last and count > 0:
            self._frames[layer] = x[:, :, -count:].clone()  # a view would keep all of `x` alive


def stream(x: Tensor, sizes: Sequence[int]) -> Iterator[tuple[Tensor, StreamCache]]:
    """The chunks of `x`, `sizes` frames each, one by one with the cache to pass to the layers."""
    cache = StreamCache()
    for i, chunk in enumerate(x.split(list(sizes), dim=2)):
        cache.first, cache.last = i == 0, i == len(sizes) - 1
        yield chunk, cache


def with_history(x: Tensor, history: Tensor | None, count: int) -> Tensor:
    """`x` with `count` frames in front: `history`, and zeros for what is missing of it.

    One frame without a history is returned as it is: `causal_conv3d` skips the taps that would only see zeros, which
    makes single images, and the first frame of every clip, K times cheaper.
    """
    if count == 0 or (history is None and x.shape[2] == 1):
        return x
    known = 0 if history is None else history.shape[2]
    parts = [x] if history is None else [history, x]
    if known < count:
        parts.insert(0, x.new_zeros(*x.shape[:2], count - known, *x.shape[3:]))
    return torch.cat(parts, dim=2)


def causal_conv3d(window: Tensor, weight: Tensor, bias: Tensor | None, *, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """`window` `[B, C_in, K-1+T, H, W]`, as `with_history` makes it -> `[B, C_out, T, H', W']`.

    A window shorter than the kernel stands for one with zeros in front. `padding` is spatial, on both sides.
    """
    if window.shape[2] < weight.shape[2]:
        weight = weight[:, :, -window.shape[2] :]
    return F.conv3d(window, weight, bias, padding=(0, *padding))


def causal_conv3d_reference(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """The formula above over a whole clip `x` `[B, C_in, T, H, W]`, in float32."""
    frames, taps = x.shape[2], weight.shape[2]
    past = F.pad(x.float(), (0, 0, 0, 0, taps - 1, 0))
    out = []
    for t in range(frames):
        seen = [F.conv2d(past[:, :, t + k], weight[:, :, k].float(), padding=padding) for k in range(taps)]
        out.append(torch.stack(seen).sum(dim=0))
    result = torch.stack(out, dim=2)
    return result if bias is None else result + bias.float().view(-1, 1, 1, 1)


class CausalConv3d(nn.Conv3d):
    """The layer: `conv(conv.with_history(x, cache))`, with "same" spatial padding and stride 1.

    Two calls, because the first copies `x`: whatever made `x` can be freed before the convolution allocates its
    result, and `x` is usually the largest tensor there is.
    """

    bias: Tensor  # there always is one

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int]) -> None:
        spatial_padding = (kernel_size[1] // 2, kernel_size[2] // 2)
        super().__init__(in_channels, out_channels, kernel_size, padding=(0, *spatial_padding))
        self.spatial_padding = spatial_padding

    def with_history(self, x: Tensor, cache: StreamCache) -> Tensor:
        """`x` with the frames before it, which `cache` remembers in turn for the next chunk."""
        count = self.kernel_size[0] - 1
        window = with_history(x, cache.take(self), count)
        cache.put(self, window, count)
        return window

    def forward(self, window: Tensor) -> Tensor:
        return causal_conv3d(window, self.weight, self.bias, padding=self.spatial_padding)
