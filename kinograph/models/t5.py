"""The text encoder: umT5, encoder only.

- no biases, and no 1/√d: the scale is in the weights of q
- every block has its own table of relative position biases (T5 proper shares the first block's)
- gated GELU; RMS norms with float32 statistics
- logits and softmax in float32 inside the attention kernel, in whatever dtype the weights are

Parameter names are the published ones. `encode_prompts` is the way from strings to what the diffusion transformer takes.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinograph.config import TextConfig
from kinograph.errors import CheckpointError
from kinograph.models.tokenizer import Tokenizer
from kinograph.ops.norm import rms_norm

EPS = 1e-6
FLOAT16_BOUND = 65504.0 - 1000.0  # the residual stream of the largest encoder leaves float16's range


class TextEncoder(nn.Module):
    """Token ids to embeddings, [B, L] -> [B, L, dim], in the dtype of the weights."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """`ids` [B, L] integers; `mask` [B, L], nonzero at real tokens, which are not influenced by the others.

        Rows of padding come back as zeros, which is what the diffusion transformer expects after a prompt.
        """
        real = mask.bool()
        buckets = distance_buckets(ids.shape[1], self.config, device=ids.device)
        x = self.token_embedding(ids)
        for block in self.blocks:
            x = block(x, real, buckets)
        return self.norm(x) * real[..., None]


class Block(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.dim)
        self.attn = SelfAttention(config)
        self.norm2 = RMSNorm(config.dim)
        self.ffn = GatedFeedForward(config)
        self.pos_embedding = PositionBias(config)

    def forward(self, x: Tensor, real: Tensor, buckets: Tensor) -> Tensor:
        x = _within_float16(x + self.attn(self.norm1(x), real, self.pos_embedding(buckets)))
        return _within_float16(x + self.ffn(self.norm2(x)))


class SelfAttention(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim_attn, bias=False)
        self.k = nn.Linear(config.dim, config.dim_attn, bias=False)
        self.v = nn.Linear(config.dim, config.dim_attn, bias=False)
        self.o = nn.Linear(config.dim_attn, config.dim, bias=False)

    def forward(self, x: Tensor, real: Tensor, bias: Tensor) -> Tensor:
        """`real` [B, L] says which keys may be seen; `bias` [N, L, L] is added to the logits."""
        q, k, v = (linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for linear in (self.q, self.k, self.v))
        # Lowest finite, not -inf: a sample without any real token must not become NaN.
        bias = bias.masked_fill(~real[:, None, None, :], torch.finfo(bias.dtype).min)  # [B, N, L, L]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """fc2(fc1(x) * gelu(gate(x)))."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(config.dim, config.dim_ffn, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = nn.Linear(config.dim, config.dim_ffn, bias=False)
        self.fc2 = nn.Linear(config.dim_ffn, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x) * self.gate(x))


class PositionBias(nn.Module):
    """A learned number per head for each bucket of distances from query to key."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_buckets, config.num_heads)

    def forward(self, buckets: Tensor) -> Tensor:
        """Buckets of the distances -(L-1) to L-1, as `distance_buckets` gives them, to the bias [N, L, L] (query, key)."""
        length = (len(buckets) + 1) // 2
        by_distance = self.embedding(buckets).T  # [N, 2L - 1]
        # Each window of L distances is the row of one query; the first begins at -(L-1), which is the last query's.
        return by_distance.unfold(1, length, 1).flip(1)


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=EPS)


def distance_buckets(length: int, config: TextConfig, *, device: torch.device | str = "cpu") -> Tensor:
    """[2 * length - 1] int64: the bucket of each distance from -(length - 1) to length - 1."""
    distances = torch.arange(1 - length, length, device=device)
    return relative_position_bucket(distances, config.num_buckets, config.max_distance)


def relative_position_bucket(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket in 0..num_buckets-1 of each `distance` = key position - query position (Raffel et al. 2020).

    Half of the buckets serve keys behind the query, half those ahead. Of each half, the first half are single
    distances; the others widen logarithmically, and the last takes all from `max_distance` on.
    """
    half = num_buckets // 2
    exact = half // 2
    far = distance.abs()
    octaves = torch.log(far.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    widening = (exact + (octaves * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(far < exact, far, widening) + half * (distance > 0)


def _within_float16(x: Tensor) -> Tensor:
    return x.clamp(-FLOAT16_BOUND, FLOAT16_BOUND) if x.dtype == torch.float16 else x


def init_weights(encoder: TextEncoder, *, generator: torch.Generator | None = None) -> None:
    """Fresh weights in place, for training from nothing.

    embeddings 1; position tables 0.05 around `fresh_position_bias`; linears 1/√(inputs), so that activations keep unit
    size; q a further 1/√(head size) below, in place of the scale that the attention lacks; norms 1. All normal, mean 0.
    """
    head_dim = encoder.config.dim_attn // encoder.config.num_heads
    for name, parameter in encoder.named_parameters():
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            nn.init.ones_(parameter)
        elif name == "token_embedding.weight":
            nn.init.normal_(parameter, std=1.0, generator=generator)
        elif name.endswith("pos_embedding.embedding.weight"):
            nn.init.normal_(parameter, std=0.05, generator=generator)
            with torch.no_grad():
                parameter.add_(fresh_position_bias(encoder.config))
        else:
            std = parameter.shape[1] ** -0.5 * (head_dim**-0.5 if name.endswith("attn.q.weight") else 1.0)
            nn.init.normal_(parameter, std=std, generator=generator)


def fresh_position_bias(config: TextConfig) -> Tensor:
    """[num_buckets, num_heads]: to begin with, heads see their neighbourhood, some nearer and some farther.

    Head h loses 2 / 4^h for each token of distance. What a word belongs to is mostly decided by the words beside it, and
    tables that begin near zero take very long to find that out.
    """
    half = config.num_buckets // 2
    distance = torch.arange(config.num_buckets) % half
    slopes = 2.0 / 4.0 ** torch.arange(config.num_heads)
    return -(distance[:, None] * slopes).float()


class EmbeddedPrompts(NamedTuple):
    """What `encode_prompts` gives."""

    embeddings: Tensor  # [B, text_len, dim], zero after the real tokens; dtype and device of the encoder
    dropped: tuple[int, ...]  # per prompt: tokens that were too many, and ignored


@torch.no_grad()
def encode_prompts(encoder: TextEncoder, tokenizer: Tokenizer, prompts: Sequence[str]) -> EmbeddedPrompts:
    """The prompts as the diffusion transformer takes them. An empty prompt is its end token alone.

    Raises `CheckpointError` if the tokenizer has more tokens than the encoder.
    """
    if tokenizer.vocab_size > encoder.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {tokenizer.folder} has {tokenizer.vocab_size} tokens but the text encoder "
            f"{encoder.config.vocab_size}: they are of different models; use the tokenizer that came with the encoder"
        )
    ids, mask, dropped = tokenizer.encode(prompts)
    # Columns that are padding for every prompt influence nothing, and most prompts are short.
    longest = int(mask.sum(dim=1).max())
    device = encoder.token_embedding.weight.device
    embeddings = encoder(ids[:, :longest].to(device), mask[:, :longest].to(device))
    return EmbeddedPrompts(F.pad(embeddings, (0, 0, 0, ids.shape[1] - longest)), dropped)
