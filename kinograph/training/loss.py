"""What training minimises. Everything is float32 and reads nothing back to the host.

    flow matching   mean |v - (noise - data)|^2 over what is not given         (`sampling.schedule` has the path)
    VAE             mean w |d| + 0.5 (|dx d| + |dy d| + 0.5 |dt d|) + tone |d in blocks| + kl * KL,   d = decoded - video
"""
from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor


def velocity_loss(velocity: Tensor, x0: Tensor, noise: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean squared error of a predicted velocity, scalar. `known` (1 where latents were given) broadcasts to them."""
    error = (velocity.float() - (noise - x0)).square()
    if known is None:
        return error.mean()
    unknown = (1 - known).expand_as(error)
    return (error * unknown).sum() / unknown.sum()


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean over elements of KL(N(mean, exp(logvar)) || N(0, 1)), in nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def edge_loss(difference: Tensor) -> Tensor:
    """How much the edges and motions of a video [B, 3, T, H, W] are missed, from decoded - video.

    A plain absolute error is content with blurred outlines; the error of the gradients is not.
    """
    rows = difference.diff(dim=3).abs().mean() + difference.diff(dim=4).abs().mean()
    return rows + 0.5 * difference.diff(dim=2).abs().mean() if difference.shape[2] > 1 else rows


def tone_loss(difference: Tensor, side: int = 8) -> Tensor:
    """How far the mean colours of blocks of `side` x `side` pixels are off, from decoded - video [B, 3, T, H, W].

    A plain absolute error lets whole areas be a little off for sharper edges; a video made clip by clip adds that up.
    """
    return F.avg_pool3d(difference, (1, side, side)).abs().mean()


def reconstruction_loss(
    decoded: Tensor, video: Tensor, *, weight: Tensor, mean: Tensor, logvar: Tensor, kl_weight: float, tone_weight: float = 0.0
) -> Mapping[str, Tensor]:
    """The VAE's loss and its parts. `weight` [B, 1, T, H, W] says how much each pixel counts (1: as background)."""
    difference = decoded.float() - video
    pixels = (difference.abs() * weight).mean()
    edges = edge_loss(difference)
    kl = kl_to_standard_normal(mean.float(), logvar.float())
    tone = tone_loss(difference) if tone_weight else 0.0
    return {
        "loss": pixels + 0.5 * edges + tone_weight * tone + kl_weight * kl,
        "kl": kl,
        "mse": difference.detach().square().mean(),
    }
