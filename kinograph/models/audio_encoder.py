"""The causal audio encoder of speech to video: one sound feature per video frame in, tokens per latent frame out.

- the hidden states of the speech encoder are mixed with learned weights: Σ u·state / Σ u, u = SiLU(weight)
- three causal convolutions; two halve the time, so that F frames become ceil(F / 4) latent frames
- a local branch gives a few tokens per latent frame, and a learned padding token joins them; a global branch gives one
  vector; the two share all but their first convolution
- everything is float32, whatever the parameters are stored in: it runs once per clip, not once per step

Axes: B batch, S hidden states, C channels, F video frames, T latent frames, A audio tokens.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinograph.config import S2VConfig
from kinograph.models.dit import Float32Linear
from kinograph.ops.norm import layer_norm

EPS = 1e-6


class CausalConv1d(nn.Module):
    """A convolution over time that sees the past alone; what lies before the start equals the first value. float32."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size=3, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, ceil(T / stride), C_out] for `x` [B, T, C]."""
        past = F.pad(x.transpose(1, 2), (2, 0), mode="replicate")
        weight, bias = self.conv.weight.float(), self.conv.bias
        return F.conv1d(past, weight, None if bias is None else bias.float(), stride=self.conv.stride).transpose(1, 2)


class TokenEncoder(nn.Module):
    """Mixed features to tokens: the convolutions."""

    def __init__(self, config: S2VConfig) -> None:
        super().__init__()
        dim, width = config.dim, config.dim // 4
        self.num_tokens = config.num_audio_token
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.conv1_local = CausalConv1d(config.audio_dim, width * self.num_tokens)
        self.conv1_global = CausalConv1d(config.audio_dim, width) if config.enable_adain else None
        self.conv2 = CausalConv1d(width, dim // 2, stride=2)
        self.conv3 = CausalConv1d(dim // 2, dim, stride=2)
        self.final_linear = Float32Linear(dim, dim) if config.enable_adain else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, T, A + 1, dim] and, if there is a global branch, vectors [B, T, dim], for mixed features `x` [B, F, C]."""
        batch = x.shape[0]
        each = self.conv1_local(x).unflatten(2, (self.num_tokens, -1)).transpose(1, 2).flatten(0, 1)  # [B·A, F, dim/4]
        tokens = self.halve_twice(each).unflatten(0, (batch, -1)).transpose(1, 2)  # [B, T, A, dim]
        padding = self.padding_tokens.float().expand(batch, tokens.shape[1], -1, -1)
        tokens = torch.cat([tokens, padding], dim=2)
        if self.conv1_global is None or self.final_linear is None:
            return tokens, None
        return tokens, self.final_linear(self.halve_twice(self.conv1_global(x)))

    def halve_twice(self, x: Tensor) -> Tensor:
        """[B, T, dim] for the first convolution's `x` [B, F, dim/4]."""
        x = self.conv2(F.silu(layer_norm(x, eps=EPS)))
        x = self.conv3(F.silu(layer_norm(x, eps=EPS)))
        return F.silu(layer_norm(x, eps=EPS))


class CausalAudioEncoder(nn.Module):
    """The layer mix and the convolutions, with the published parameter names."""

    def __init__(self, config: S2VConfig) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((1, config.num_audio_layers, 1, 1), 0.01))
        self.encoder = TokenEncoder(config)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Audio tokens [B, ceil(F/4), A + 1, dim] and global vectors [B, ceil(F/4), dim] or None, float32.

        `features` [B, S, C, F], one per video frame. Latent frame j hears frames 4j − 8 to 4j.
        """
        return self.encoder(self.mix(features).transpose(1, 2))

    def for_clip(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same for the F = 4n frames of a clip of n latent frames: latent frame j hears frames 4j − 5 to 4j + 3.

        The published code puts the first frame before the clip 73 times and drops the 19 latent frames that come of it.
        As everything before the start counts as equal to the first value anyway, once does the same.
        """
        tokens, vectors = self(torch.cat([features[..., :1], features], dim=-1))
        return tokens[:, 1:], None if vectors is None else vectors[:, 1:]

    def mix(self, features: Tensor) -> Tensor:
        """[B, C, F] for `features` [B, S, C, F]: the mean of the hidden states under the learned weights."""
        weights = F.silu(self.weights.float())
        return (features.float() * weights).sum(dim=1) / weights.sum(dim=1)
