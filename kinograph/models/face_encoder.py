"""From motion vectors to face tokens, and the blocks through which the transformer's tokens read them.

- causal convolutions over time, four pixel frames to one latent frame; each of several heads becomes a token
- one learned token per frame joins them, and an all-zero frame stands in for the reference picture, which has no motion
- in a face block, tokens attend to the few face tokens of their own frame: no positions, no gate, no modulation

Nothing but the queries depends on the noise or the timestep: face tokens are computed once per clip.

Axes: B batch, F pixel frames, T latent frames, K face tokens of a frame, C width, L tokens, R rows, N heads, D head dim.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinograph.models.dit import RMSNorm
from kinograph.ops.attention import attention
from kinograph.ops.norm import layer_norm

EPS = 1e-6
KERNEL = 3


class FaceEncoder(nn.Module):
    """Motion vectors [B, F, motion_dim], F = 4n + 1, to face tokens [B, n + 1, num_heads + 1, dim]."""

    def __init__(self, motion_dim: int, dim: int, *, head_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.conv1_local = CausalConv(motion_dim, head_dim * num_heads)
        self.conv2 = CausalConv(head_dim, head_dim, stride=2)
        self.conv3 = CausalConv(head_dim, head_dim, stride=2)
        self.out_proj = nn.Linear(head_dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, motion: Tensor) -> Tensor:
        x = self.conv1_local(motion.to(self.padding_tokens.dtype))
        x = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).flatten(0, 1)  # [B, F, N·C] -> [B·N, F, C]
        x = self.conv2(_activate(x))
        x = self.conv3(_activate(x))
        x = self.out_proj(_activate(x))
        tokens = x.unflatten(0, (-1, self.num_heads)).transpose(1, 2)  # [B·N, T, C] -> [B, T, N, C]
        return torch.cat([tokens, self.padding_tokens.expand(*tokens.shape[:2], 1, -1)], dim=2)


class CausalConv(nn.Module):
    """A convolution over the frames of [B, F, C] that sees no later frame; before the first one, the first is repeated."""

    def __init__(self, in_dim: int, out_dim: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_dim, out_dim, KERNEL, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x.transpose(1, 2), (KERNEL - 1, 0), mode="replicate")).transpose(1, 2)


class FaceBlock(nn.Module):
    """Attention from tokens to the face tokens of their frame."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.linear1_kv = nn.Linear(dim, 2 * dim)
        self.linear1_q = nn.Linear(dim, dim)
        self.linear2 = nn.Linear(dim, dim)
        self.q_norm = RMSNorm(self.head_dim, eps=EPS)
        self.k_norm = RMSNorm(self.head_dim, eps=EPS)

    def keys_values(self, face: Tensor) -> Tensor:
        """[B, R, K, 2, N, D] for face tokens [B, R, K, C]: what `forward` takes."""
        kv = self.linear1_kv(layer_norm(face, eps=EPS).to(self.q_norm.weight.dtype)).unflatten(-1, (2, -1, self.head_dim))
        k, v = kv.unbind(dim=3)
        return torch.stack([self.k_norm(k), v], dim=3)

    def forward(self, x: Tensor, keys_values: Tensor) -> Tensor:
        """What is to be added to `x` [B, L, C]; row r of `keys_values` serves the L/R tokens from r·L/R on."""
        batch, rows = keys_values.shape[:2]
        q = self.linear1_q(layer_norm(x, eps=EPS).to(self.q_norm.weight.dtype))
        q = self.q_norm(q.unflatten(-1, (-1, self.head_dim)))
        k, v = keys_values.flatten(0, 1).unbind(dim=2)  # [B·R, K, N, D]
        out = attention(q.unflatten(1, (rows, -1)).flatten(0, 1), k, v)  # each row's tokens are a sample of their own
        return self.linear2(out.flatten(2).unflatten(0, (batch, rows)).flatten(1, 2))


def with_reference_frame(face: Tensor) -> Tensor:
    """Face tokens [B, T + 1, K, C] of a clip with its reference picture, from those of the clip [B, T, K, C]."""
    return F.pad(face, (0, 0, 0, 0, 1, 0))


def _activate(x: Tensor) -> Tensor:
    return F.silu(layer_norm(x, eps=EPS)).to(x.dtype)
