"""The image encoder: the visual tower of a CLIP model (ViT-H/14 beside XLM-RoBERTa, as OpenCLIP trained it).

The result is the hidden state before the last block, all tokens, without the final norm. The last block, that norm and
the projection to the space shared with text are parameters of the published file that nothing here reads.
Parameter names are the published ones; the text tower (`textual.*`, `log_scale`) of the same file is not built.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinograph.config import ImageEncoderConfig
from kinograph.models.dit import LayerNorm
from kinograph.ops.attention import attention

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder(nn.Module):
    """Pictures to tokens [B, 1 + patches, dim]: the class token, then the patches row by row."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisualTower(config)

    def forward(self, pictures: Tensor) -> Tensor:
        """`pictures` [B, 3, H, W] in [-1, 1], of any size; the tokens come in the dtype of the weights."""
        return self.visual(normalised(pictures, self.config.image_size))


class VisualTower(nn.Module):
    """A vision transformer, run up to its last block but one."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.cls_embedding = nn.Parameter(torch.randn(1, 1, dim) / dim**0.5)
        self.pos_embedding = nn.Parameter(torch.randn(1, config.num_tokens, dim) / dim**0.5)
        self.head = nn.Parameter(torch.randn(dim, config.out_dim) / dim**0.5)
        self.patch_embedding = nn.Conv2d(3, dim, kernel_size=config.patch_size, stride=config.patch_size, bias=False)
        self.pre_norm = LayerNorm(dim, eps=eps)
        self.transformer = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.post_norm = LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1 + patches, dim] for normalised pictures [B, 3, image_size, image_size]."""
        dtype = self.patch_embedding.weight.dtype
        patches = self.patch_embedding(x.to(dtype)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_embedding.expand(len(x), -1, -1), patches], dim=1)
        x = self.pre_norm(x + self.pos_embedding)
        for block in self.transformer[:-1]:
            x = block(x)
        return x.to(dtype)


class Block(nn.Module):
    """Attention and feed-forward, each added to a float32 residual stream."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.dim * config.mlp_ratio
        self.norm1 = LayerNorm(dim, eps=config.eps)
        self.attn = SelfAttention(dim, config.num_heads)
        self.norm2 = LayerNorm(dim, eps=config.eps)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.norm1.weight.dtype
        x = x + self.attn(self.norm1(x).to(dtype))
        return x + self.mlp(self.norm2(x).to(dtype))


class SelfAttention(nn.Module):
    """Attention among all tokens."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(dim=2)  # [B, L, N, D]
        return self.proj(attention(q, k, v).flatten(2))


def normalised(pictures: Tensor, size: int) -> Tensor:
    """[B, 3, size, size] float32 for `pictures` [B, 3, H, W] in [-1, 1]: squeezed to a square and standardised.

    Bicubic without antialiasing and without clamping, as the model's users have always done it.
    """
    x = F.interpolate(pictures.float(), size=(size, size), mode="bicubic", align_corners=False)
    mean, deviation = (x.new_tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return (x * 0.5 + 0.5 - mean) / deviation
