"""Fits a trained VAE, or its decoder alone, to other clips than those it was trained on.

A decoder that is tuned alone leaves latents what they are, so no transformer that was trained on them need be trained again: an
encoder mostly tells apart what it never saw, and only its decoder does not know what to draw.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kinograph.config import VAEConfig
from kinograph.models.vae import VAE
from kinograph.training import train_vae
from kinograph.training.latents import fold_latent_statistics
from kinograph.training.loss import reconstruction_loss
from kinograph.training.optim import FlatParameters, Optimizer, OptimizerConfig
from kinograph.training.parts import save_parts
from kinograph.training.trainer import Phase, TrainConfig, Trainer

Clips = Callable[[], tuple[Tensor, Tensor]]
"""Draws a batch on the training device: clips [B, 3, T, H, W] in [-1, 1], and how much each pixel counts [B, 1, T, H, W].

Clips must be as long as those that will be decoded: a decoder that has seen only the first latent frames colours later ones wrongly
(trained on 9 frames, it was 6 % of the range off in the 25th).
"""


@dataclass
class VAETuning:
    """A VAE in training on `clips`."""

    vae: VAE
    weights: FlatParameters
    optimizer: Optimizer
    clips: Clips
    decoder_only: bool
    kl_weight: float = 3e-5
    tone_weight: float = 2.0

    def loss(self) -> Mapping[str, Tensor]:
        with torch.no_grad():
            video, weight = self.clips()
        with torch.set_grad_enabled(not self.decoder_only):
            mean, log_variance = self.vae.encode_moments(video)
        log_variance = log_variance.clamp(-30, 20)
        decoded = self.vae.decode(mean + torch.randn_like(mean) * (0.5 * log_variance).exp(), whole=True, clamp=False)
        return reconstruction_loss(
            decoded, video, weight=weight, mean=mean, logvar=log_variance, kl_weight=self.kl_weight, tone_weight=self.tone_weight
        )

    def averaged(self) -> VAE:
        vae = VAE(self.vae.config).to(self.weights.master.device)
        state = {name: tensor.float() for name, tensor in self.vae.state_dict().items()}
        for part in _trained(self.vae, self.decoder_only):
            tensors = self.weights.of_module(part, self.optimizer.state.ema)
            state |= {f"{part}.{name}" if self.decoder_only else name: tensor for name, tensor in tensors.items()}
        vae.load_state_dict(state)
        return vae.eval().requires_grad_(False)


def _trained(vae: VAE, decoder_only: bool) -> dict[str, nn.Module]:
    return {"conv2": vae.conv2, "decoder": vae.decoder} if decoder_only else {"vae": vae}


def vae_tuning(
    config: VAEConfig,
    state: Mapping[str, Tensor],
    clips: Clips,
    *,
    device: torch.device,
    dtype: torch.dtype,
    decoder_only: bool = False,
) -> VAETuning:
    """The VAE with the weights `state`, on `device` and computing in `dtype`, ready for `vae_trainer`."""
    vae = VAE(config)
    vae.load_state_dict(dict(state))
    vae.to(device)
    trained = _trained(vae, decoder_only)
    if decoder_only:
        vae.requires_grad_(False).to(dtype)
        for part in trained.values():
            part.float()
    weights = FlatParameters(trained, dtype=dtype)
    lr = 6e-4 if decoder_only else 1.2e-3
    return VAETuning(vae, weights, Optimizer(weights, OptimizerConfig(kind="adamw", lr=lr, betas=(0.9, 0.98))), clips, decoder_only)


def vae_trainer(tuning: VAETuning, config: TrainConfig) -> Trainer:
    return Trainer(tuning.weights, tuning.optimizer, [Phase("VAE, decoder" if tuning.decoder_only else "VAE", tuning.loss)], config)


@torch.no_grad()
def finish_vae(tuning: VAETuning, out: Path, *, dtype: torch.dtype) -> VAE:
    """The tuned VAE, saved as `vae.part*`, and loaded from there in `dtype`; latents that changed have their statistics folded in."""
    vae = tuning.averaged()
    if not tuning.decoder_only:
        _fold(vae, tuning.clips)
    save_parts(vae.state_dict(), out, train_vae.STEM, metadata={"version": vae.config.version})
    return train_vae.load_vae(out, vae.config, device=vae.conv1.weight.device, dtype=dtype)


def _fold(vae: VAE, clips: Clips) -> None:
    totals: list[Tensor] = []
    for _ in range(8):
        mean, log_variance = vae.encode_moments(clips()[0])
        axes = (0, 2, 3, 4)
        totals.append(torch.stack([mean.mean(axes), mean.square().mean(axes), log_variance.exp().mean(axes)]))
    average, square, spread = torch.stack(totals).mean(0)
    fold_latent_statistics(vae, average, (square - average.square() + spread).clamp(min=1e-12).sqrt())
