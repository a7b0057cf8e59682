"""Trains a nano VAE on drawn clips: small crops first, whole clips at the end.

Every step draws its own clips on the device, so there is no data to load and none is seen twice. Crops carry over to
whole clips (everything but the attention of the middle is local), and cost a sixteenth; the last phases teach the
attention its real size. Colour is learnt in seconds, outlines take the rest: pixels of the objects weigh more.
"""
from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kinograph.checkpoints.files import read_tensors
from kinograph.checkpoints.storage import unpack
from kinograph.config import NANO_VAE_21, NANO_VAE_22, VAEConfig
from kinograph.models.vae import VAE, ResidualBlock, init_weights
from kinograph.training.judge import judge_accuracy, psnr
from kinograph.training.latents import ClipSize, conditioning_videos, fold_latent_statistics, latent_statistics
from kinograph.training.loss import reconstruction_loss
from kinograph.training.optim import FlatParameters, Optimizer, OptimizerConfig, hidden_kernel, optimized
from kinograph.training.parts import load_parts, save_parts
from kinograph.training.sheets import contact_sheet
from kinograph.training.toybox import Scene, Window, object_windows, sample_scenes
from kinograph.training.trainer import Loss, Phase, TrainConfig, Trainer, compile_blocks

STEM = "vae"
OBJECT_MARGIN = 2.0  # pixels around an object that weigh like it: where its outline must be sharp
FREE_WINDOWS = 0.2  # share of crops anywhere in the picture; the others are around the main object


CLIPS = ClipSize(frames=17, height=256, width=256)


@dataclass(frozen=True, kw_only=True)
class CropPhase:
    """`batch` windows of `side` pixels a step, up to the share `until` of the budget. side 0: whole clips."""

    side: int
    batch: int
    until: float


@dataclass(frozen=True, kw_only=True)
class VAERecipe:
    """What to train, and on what."""

    config: VAEConfig
    size: ClipSize = CLIPS
    phases: tuple[CropPhase, ...] = (
        CropPhase(side=64, batch=16, until=0.55),
        CropPhase(side=128, batch=6, until=0.8),
        CropPhase(side=0, batch=2, until=1.0),
    )
    kl_weight: float = 3e-5
    object_weight: float = 5.0  # on top of 1
    grey_share: float = 0.0  # of clips that are a picture followed by grey, as image conditioning encodes them
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(kind="adamw", lr=1.5e-3, muon_lr=0.01, betas=(0.9, 0.98))
    )
    num_scenes: int = 65536
    num_eval: int = 32
    eval_batch: int = 8
    seed: int = 1


RECIPES: Mapping[str, VAERecipe] = {
    "2.2": VAERecipe(config=NANO_VAE_22),
    "2.1": VAERecipe(config=NANO_VAE_21, grey_share=0.12),
}


@dataclass
class VAETraining:
    """A VAE in training, and how it is judged. `loss_of(phase)` is what the trainer captures."""

    recipe: VAERecipe
    vae: VAE
    weights: FlatParameters
    optimizer: Optimizer
    scenes: Scene  # on the device
    held_out: Scene  # on the device
    dtype: torch.dtype
    out: Path

    @property
    def device(self) -> torch.device:
        return self.weights.master.device

    # ------------------------------------------------------------------------------------------------------- a step

    def loss_of(self, phase: CropPhase) -> Loss:
        def loss() -> Mapping[str, Tensor]:
            video, weight = self._batch(phase)
            mean, log_variance = self.vae.encode_moments(video)
            log_variance = log_variance.clamp(-30, 20)
            latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            decoded = self.vae.decode(latents, whole=True, clamp=False)
            return reconstruction_loss(
                decoded, video, weight=weight, mean=mean, logvar=log_variance, kl_weight=self.recipe.kl_weight
            )

        return loss

    @torch.no_grad()
    def _batch(self, phase: CropPhase) -> tuple[Tensor, Tensor]:
        """Clips [B, 3, T, H, W] and how much each of their pixels counts [B, 1, T, H, W]."""
        size = self.recipe.size
        rows = torch.randint(len(self.scenes), (phase.batch,), device=self.device)
        scene = self.scenes[rows]
        window = _windows(scene, size, phase.side) if phase.side else None
        video = size.draw(scene, window=window)
        weight = 1 + self.recipe.object_weight * size.object_mask(scene, window=window, margin=OBJECT_MARGIN)
        if self.recipe.grey_share:
            video, weight = self._partly_grey(video, weight)
        return video, weight

    def _partly_grey(self, video: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Some clips with only their first frame, and some with only their first and last; grey weighs 1."""
        chance = torch.rand(video.shape[0], 1, 1, 1, 1, device=video.device) / self.recipe.grey_share
        for has_last, chosen in ((False, chance < 0.5), (True, (chance >= 0.5) & (chance < 1))):
            video = torch.where(chosen, conditioning_videos(video, has_last=has_last), video)
            weight = torch.where(chosen, 1 + conditioning_videos(weight - 1, has_last=has_last), weight)
        return video, weight

    # ----------------------------------------------------------------------------------------------------- judging

    def averaged(self) -> VAE:
        """A VAE of its own with the moving average of the weights, in the dtype of training, not folded."""
        vae = VAE(self.recipe.config).to(self.device)
        vae.load_state_dict(self.weights.of_module(STEM, self.optimizer.state.ema))
        return vae.eval().requires_grad_(False)

    @torch.no_grad()
    def evaluate(self) -> str:
        """One line: quality on held-out whole clips, and what the judge sees in the reconstructions. Saves the weights."""
        started = time.monotonic()
        vae = self.averaged()
        statistics = self._publish(vae)
        vae.to(self.dtype)
        clips, decoded = [], []
        for start in range(0, len(self.held_out), self.recipe.eval_batch):
            video = self.recipe.size.draw(self.held_out[start : start + self.recipe.eval_batch])
            clips.append(video)
            decoded.append(vae.decode(vae.encode(video, whole=True), whole=True))
        clip, reconstruction = torch.cat(clips), torch.cat(decoded)
        quality = psnr(reconstruction, clip)
        verdict = judge_accuracy(reconstruction, self.held_out)
        pairs = torch.stack([clip[:4], reconstruction[:4]], dim=1).flatten(0, 1).float().cpu()
        words = [text for value in quality[:4].tolist() for text in ("drawn", f"reconstructed, {value:.1f} dB")]
        contact_sheet(pairs, self.out / "vae.png", words, columns=2)
        seen = " ".join(f"{name} {100 * share:.0f}" for name, share in verdict.items())
        return (
            f"eval vae: PSNR {quality.mean():.2f} dB, worst {quality.min():.2f}, first frame "
            f"{psnr(reconstruction[:, :, :1], clip[:, :, :1]).mean():.2f}; judge % {seen}; {statistics}; {time.monotonic() - started:.1f} s"
        )

    def _publish(self, vae: VAE) -> str:
        """Folds the latent statistics into `vae` and writes it; returns a word about the latents."""
        mean, std = latent_statistics(vae, self.held_out, self.recipe.size, batch=self.recipe.eval_batch)
        fold_latent_statistics(vae, mean, std)
        save_parts(vae.state_dict(), self.out, STEM, metadata={"version": self.recipe.config.version})
        _, folded_log_variance = vae.encode_moments(self.recipe.size.draw(self.held_out[: self.recipe.eval_batch]))
        unused = (folded_log_variance.exp().mean((0, 2, 3, 4)) > 0.5).sum().item()
        return f"latent deviation {std.min():.3g} to {std.max():.3g}, {unused} of {len(std)} channels unused"


def _windows(scene: Scene, size: ClipSize, side: int) -> Window:
    """A window for each clip, most of them around its object."""
    top, left, rows, columns = object_windows(scene, height=size.height, width=size.width, frames=size.frames, size=(side, side))
    free = torch.rand(3, len(scene), device=top.device)
    anywhere = free[0] < FREE_WINDOWS
    top = torch.where(anywhere, (free[1] * (size.height - rows + 1)).floor(), top)
    left = torch.where(anywhere, (free[2] * (size.width - columns + 1)).floor(), left)
    return top, left, rows, columns


# ------------------------------------------------------------------------------------------------------------ running


def prepare(recipe: VAERecipe, out: Path, *, device: torch.device, dtype: torch.dtype) -> VAETraining:
    """The VAE of `recipe` with fresh weights, ready for `trainer_of`."""
    torch.manual_seed(recipe.seed)
    vae = VAE(recipe.config)
    init_weights(vae)
    vae.to(device)
    weights, optimizer = optimized({STEM: vae}, recipe.optimizer, dtype=dtype, matrix=hidden_kernel)
    out.mkdir(parents=True, exist_ok=True)
    return VAETraining(
        recipe=recipe,
        vae=vae,
        weights=weights,
        optimizer=optimizer,
        scenes=sample_scenes(recipe.num_scenes, recipe.seed).to(device),
        held_out=sample_scenes(recipe.num_eval, recipe.seed + 1, split="held_out").to(device),
        dtype=dtype,
        out=out,
    )


def trainer_of(training: VAETraining, config: TrainConfig, *, compiled: bool) -> Trainer:
    blocks = [module for module in training.vae.modules() if isinstance(module, ResidualBlock)]
    phases = [
        Phase(f"{phase.batch} crops of {phase.side}" if phase.side else f"{phase.batch} clips", training.loss_of(phase), phase.until)
        for phase in training.recipe.phases
    ]
    return Trainer(
        training.weights,
        training.optimizer,
        phases,
        config,
        compiled=compile_blocks(blocks) if compiled else None,
        on_evaluate=lambda trainer: training.evaluate(),
    )


def load_vae(source: str | Path, config: VAEConfig, *, device: torch.device, dtype: torch.dtype) -> VAE:
    """The VAE that a training left in the folder `source`, or that a file of the published layout holds, for inference."""
    vae = VAE(config)
    vae.load_state_dict(vae_state(source))
    vae = vae.to(device, dtype).eval().requires_grad_(False)
    if device.type == "cuda":  # the order of axes that cuDNN's half-precision kernels are fast in
        for parameter in vae.parameters():
            if parameter.ndim in (4, 5):
                order = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
                parameter.data = parameter.data.contiguous(memory_format=order)
    return vae


def vae_state(source: str | Path) -> dict[str, Tensor]:
    """The tensors of `load_vae`, on the CPU."""
    if Path(source).is_file():
        return dict(unpack(read_tensors(Path(source))))
    return load_parts(source, STEM)[0]
