"""The diffusion transformer of Wan2.2: noisy latents, a timestep and a text in, the velocity (noise − data) out.

- 3D patches as tokens; rotary positions over (frame, row, column), one table per forward pass
- each block: self-attention, cross-attention to the text, feed-forward; q and k RMS-normalised over all heads together
- the timestep enters as shift, scale and gate rows: one row per sample, per latent frame, or per token, never expanded
- text padding is attended to, as the model was trained: zeros before the projection are not zeros after it

Precision: the linears and attention run in the dtype of the parameters. The residual stream, norms, modulation, timestep
embedding and the head are float32, whatever the parameters are stored in. There is no autocast.

Seams, for kernels and parallelism: `block.self_attn.attend`, `block.cross_attn.attend` (a function like
`kinograph.ops.attention.attention`) and `dit.tokens` (an object like `WholeSequence`).

Axes: B batch, C channels, T H W latent frames, rows, columns, L tokens, R modulation rows, M text rows, N heads, D head dim.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from kinograph.config import DiTConfig
from kinograph.ops.attention import attention
from kinograph.ops.modulate import gated_add, modulated_norm
from kinograph.ops.norm import layer_norm, rms_norm
from kinograph.ops.rope import angle_dtype, apply_rope, inverse_powers, rope_table

Grid = tuple[int, int, int]  # tokens along (time, height, width)


@dataclass(frozen=True)
class Inputs:
    """Everything `DiT.forward` takes after `t`: call `dit(x, t, **vars(inputs))`."""

    text: Tensor  # [B, M, text_dim], zero-padded to text_len rows
    channels: Tensor | None = None  # [B, Cy, T, H, W], joined after the latents


class WholeSequence:
    """What `dit.tokens` must provide; this one keeps the whole sequence on one rank.

    A sequence-parallel object gives each rank an equal, consecutive share of the tokens, padded with zeros at the end
    of the sequence where it does not divide. Its partner in each `self_attn.attend` exchanges shares, so that every
    query sees the keys of the whole sequence; it is called with `kv_len=num_tokens`, which cuts the padding off the
    keys. Norms, linears, cross-attention and the head work on shares as they are.
    """

    def shard(self, x: Tensor, num_tokens: int) -> Tensor:
        """This rank's part of `x` [B, R, ...], whose row r serves num_tokens/R consecutive tokens.

        Called with tokens (R = num_tokens), with the rotary table (likewise, B = 1) and with modulation rows. A single
        row must come back as it is; other rows must come back so that they divide this rank's tokens evenly, if need
        be repeated to one per token first.
        """
        return x

    def gather(self, x: Tensor, num_tokens: int) -> Tensor:
        """The whole sequence [B, num_tokens, C], on every rank and without padding, from the ranks' parts `x`."""
        return x


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all blocks and the head of one pass take besides the tokens: the share of it that goes with this rank's tokens."""

    rows: Tensor  # [B, R, 6, dim] float32: modulation
    embedding: Tensor  # [B, R, dim] float32: of the timestep, for the head
    rope: Tensor  # [L, D/2]
    num_tokens: int  # of the whole sequence, without padding


# -------------------------------------------------------------------------------------------------------- layers


class Float32Linear(nn.Linear):
    """A linear that computes in float32 whatever its parameters are stored in."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class LayerNorm(nn.LayerNorm):
    """Layer norm with weight and bias; float32 out."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, eps=self.eps)


class RMSNorm(nn.Module):
    """RMS norm over the last axis, in the dtype of the input."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps)


class PatchEmbedding(nn.Conv3d):
    """A convolution whose kernel is its stride, run as one matrix product over patches.

    Faster than the convolution, whose half-precision kernels are slow or take much workspace for such shapes.
    """

    def __init__(self, in_dim: int, dim: int, patch_size: Grid) -> None:
        super().__init__(in_dim, dim, kernel_size=patch_size, stride=patch_size)
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, L, dim] for `x` [B, C, T, H, W]; an odd last row or column, which fills no patch, is dropped."""
        return F.linear(patchify(x.to(self.weight.dtype), self.patch_size), self.weight.flatten(1), self.bias)


class Attention(nn.Module):
    """What self- and cross-attention share. `attend` is the seam for kernels and parallelism."""

    def __init__(self, dim: int, num_heads: int, *, eps: float) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps=eps)
        self.norm_k = RMSNorm(dim, eps=eps)
        self.attend = attention

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))  # [B, L, C] -> [B, L, N, D]


class SelfAttention(Attention):
    """Attention among the tokens, with rotary positions."""

    def forward(self, x: Tensor, rope: Tensor, *, num_tokens: int | None = None) -> Tensor:
        """[B, L, dim] for `x` [B, L, dim] and a table `rope` [L, D/2]; keys from `num_tokens` on are not attended to."""
        # One after the other: at 720p the float32 copy inside apply_rope is 1.5 GB, and only one exists at a time.
        q = apply_rope(self.split_heads(self.norm_q(self.q(x))), rope)
        k = apply_rope(self.split_heads(self.norm_k(self.k(x))), rope)
        v = self.split_heads(self.v(x))
        return self.o(self.attend(q, k, v, kv_len=num_tokens).flatten(2))


class CrossAttention(Attention):
    """Attention from the tokens to the text: no positions, no mask."""

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """[B, L, dim] for `x` [B, L, dim] and `text` [B, M, dim]."""
        q = self.split_heads(self.norm_q(self.q(x)))
        k = self.split_heads(self.norm_k(self.k(text)))
        v = self.split_heads(self.v(text))
        return self.o(self.attend(q, k, v).flatten(2))


class Block(nn.Module):
    """One layer: self-attention, cross-attention, feed-forward, each added to a float32 residual stream."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.eps = eps
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.self_attn = SelfAttention(dim, config.num_heads, eps=eps)
        self.norm3 = LayerNorm(dim, eps=eps)
        self.cross_attn = CrossAttention(dim, config.num_heads, eps=eps)
        self.ffn = nn.Sequential(nn.Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, dim))

    def forward(self, x: Tensor, rows: Tensor, text: Tensor, rope: Tensor, *, num_tokens: int | None = None) -> Tensor:
        """[B, L, dim] float32.

        `x` [B, L, dim] float32; `rows` [B, R, 6, dim] float32 from the timestep; `text` [B, M, dim]; `rope` [L, D/2].
        `num_tokens` is the length of the whole sequence without padding, where that is not L.
        """
        dtype = self.norm3.weight.dtype  # not a linear's: those may be stored in 8 bits
        shift1, scale1, gate1, shift2, scale2, gate2 = (rows + self.modulation.float().unsqueeze(1)).unbind(dim=2)
        h = modulated_norm(x, shift1, scale1, eps=self.eps).to(dtype)
        x = gated_add(x, self.self_attn(h, rope, num_tokens=num_tokens), gate1)
        h = self.norm3(x).to(dtype)
        x = x + self.cross_attn(h, text)
        h = modulated_norm(x, shift2, scale2, eps=self.eps).to(dtype)
        return gated_add(x, self.ffn(h), gate2)


class Head(nn.Module):
    """The last norm and projection, in float32."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        t, h, w = config.patch_size
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.head = Float32Linear(config.dim, t * h * w * config.out_dim)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Patches [B, L, pt·ph·pw·out_dim] in float32, channels fastest; `embedding` [B, R, dim] of the timestep, unprojected."""
        shift, scale = (embedding.unsqueeze(2) + self.modulation.float().unsqueeze(1)).unbind(dim=2)
        return self.head(modulated_norm(x, shift, scale, eps=self.eps))


# --------------------------------------------------------------------------------------------------------- model


class DiT(nn.Module):
    """The diffusion transformer of the text-to-video and image-to-video models, with the published parameter names."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = PatchEmbedding(config.in_dim, dim, config.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(Float32Linear(config.freq_dim, dim), nn.SiLU(), Float32Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Float32Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.tokens = WholeSequence()

    def forward(self, x: Tensor, t: Tensor, text: Tensor, channels: Tensor | None = None) -> Tensor:
        """The velocity [B, out_dim, T, 2(H//2), 2(W//2)] in float32.

        `x` [B, C, T, H, W]: noisy latents. `t`, in 0..1000: [B], or [B, R] with one value for each of R equal,
        consecutive groups of tokens (R = T: one per latent frame). `text` [B, text_len, text_dim], zero-padded.
        `channels` [B, Cy, T, H, W] is joined after `x`; C + Cy must be `config.in_dim`.
        """
        grid = patch_grid(x, self.config.patch_size)
        x = self.patch_embedding(self.join_channels(x, channels))
        text = self.embed_text(text)
        x, shared = self.share(x, *self.embed_time(t), rope_table(grid, self.config.head_dim, device=x.device))
        for block in self.blocks:
            x = block(x, shared.rows, text, shared.rope, num_tokens=shared.num_tokens)
        return unpatchify(self.predict(x, shared), grid, self.config.patch_size)

    # -- the steps of a pass, from which models with more inputs are made too

    def join_channels(self, x: Tensor, channels: Tensor | None) -> Tensor:
        """`x` and, after it, `channels`; raises ValueError if that is not what the weights take."""
        latents, extra = x.shape[1], 0 if channels is None else channels.shape[1]
        if latents + extra != self.config.in_dim:
            raise ValueError(f"this model takes {self.config.in_dim} channels; got {latents} of latents and {extra} of conditioning")
        return x if channels is None else torch.cat([x, channels.to(x.dtype)], dim=1)

    def embed_text(self, text: Tensor) -> Tensor:
        """[B, M, dim] for `text` [B, M, text_dim]."""
        return self.text_embedding(text.to(self.patch_embedding.weight.dtype))

    def embed_time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Modulation rows [B, R, 6, dim] and embeddings [B, R, dim] in float32, of `t` [B] or [B, R]."""
        embedding = self.time_embedding(timestep_embedding(t.reshape(t.shape[0], -1), self.config.freq_dim))
        return self.time_projection(embedding).unflatten(-1, (6, -1)), embedding

    def share(self, x: Tensor, rows: Tensor, embedding: Tensor, rope: Tensor) -> tuple[Tensor, Shared]:
        """This rank's part of the tokens `x` [B, L, dim], in float32, and of what every block takes; `rope` [L, D/2]."""
        num_tokens = x.shape[1]
        return self.tokens.shard(x.float(), num_tokens), Shared(
            rows=self.tokens.shard(rows, num_tokens),
            embedding=self.tokens.shard(embedding, num_tokens),
            rope=self.tokens.shard(rope.unsqueeze(0), num_tokens).squeeze(0),
            num_tokens=num_tokens,
        )

    def predict(self, x: Tensor, shared: Shared) -> Tensor:
        """Patches [B, num_tokens, pt·ph·pw·out_dim] of the velocity, on every rank, from this rank's tokens after the last block."""
        return self.tokens.gather(self.head(x, shared.embedding), shared.num_tokens)


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """[..., dim] float32: cosines, then sines, of t · 10000^(−i/(dim/2)); `t` in 0..1000, of any dtype. Angles in float64."""
    frequencies = inverse_powers(dim // 2, device=t.device)
    angles = t.to(angle_dtype(t.device)).unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def patch_grid(x: Tensor, patch_size: Grid) -> Grid:
    """How many whole patches `x` [B, C, T, H, W] has on each axis."""
    t, h, w = (size // patch for size, patch in zip(x.shape[2:], patch_size))
    return (t, h, w)


def patchify(x: Tensor, patch_size: Grid) -> Tensor:
    """Patches [B, L, C·pt·ph·pw] of `x` [B, C, T, H, W], channel slowest, as in the weight of a convolution."""
    (t, h, w), (pt, ph, pw) = patch_grid(x, patch_size), patch_size
    x = x[:, :, : t * pt, : h * ph, : w * pw].unflatten(4, (w, pw)).unflatten(3, (h, ph)).unflatten(2, (t, pt))
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)  # B t h w C pt ph pw


def unpatchify(x: Tensor, grid: Grid, patch_size: Grid) -> Tensor:
    """[B, C, T, H, W] from patches [B, L, pt·ph·pw·C] (channel fastest: not the order of `patchify`)."""
    x = x.unflatten(2, (*patch_size, -1)).unflatten(1, grid)  # B t h w pt ph pw C
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6).flatten(4, 5).flatten(2, 3)


# ---------------------------------------------------------------------------------------- initialisation and cost


@torch.no_grad()
def init_weights(dit: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """Sets the weights for training from scratch.

    linears, patch embedding    Xavier uniform; biases zero
    modulation                  normal, deviation 1/√dim
    norms                       weight 1, bias 0
    head.head.weight            zero: the untrained model predicts velocity 0
    """
    for module in dit.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
        elif isinstance(module, LayerNorm | RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, Block | Head):
            nn.init.normal_(module.modulation, std=module.modulation.shape[-1] ** -0.5, generator=generator)
    for name, parameter in dit.named_parameters():
        if name.endswith(".bias") or name == "head.head.weight":
            nn.init.zeros_(parameter)


def flops(config: DiTConfig, num_tokens: int, text_len: int | None = None) -> int:
    """Floating-point operations of one forward pass of one sample, a multiply-add counted as two: products and attention only."""
    tokens, dim, rows = num_tokens, config.dim, config.text_len if text_len is None else text_len
    patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    self_attention = 4 * tokens * dim * dim + 2 * tokens * tokens * dim
    cross_attention = 2 * (tokens + rows) * dim * dim + 2 * tokens * rows * dim
    ffn = 2 * tokens * dim * config.ffn_dim
    borders = tokens * patch * (config.in_dim + config.out_dim) * dim
    text = rows * (config.text_dim + dim) * dim
    time = (config.freq_dim + 7 * dim) * dim
    return 2 * (config.num_layers * (self_attention + cross_attention + ffn) + borders + text + time)
