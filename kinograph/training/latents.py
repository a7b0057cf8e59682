"""From a trained VAE to what the transformer trains on: latents of unit variance, kept on the device with their captions.

    latent_statistics       mean and deviation of each channel, over drawn clips
    fold_latent_statistics  puts them into the VAE's own weights, so that its config can say mean 0, deviation 1
    caption_ids             several captions a clip as token ids
    build_pool              the latents of many clips, and the image conditions where a model wants them
"""
from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from kinograph.models.tokenizer import Tokenizer
from kinograph.models.vae import VAE
from kinograph.training.captions import caption_of
from kinograph.training.toybox import Scene, Window, descriptions, draw, object_mask


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """Frames and pixels of a clip."""

    frames: int
    height: int
    width: int

    def draw(self, scene: Scene, *, window: Window | None = None) -> Tensor:
        """The clips of `scene`, [B, 3, T, H, W], or the `window` of each."""
        return draw(scene, height=self.height, width=self.width, frames=self.frames, window=window)

    def object_mask(self, scene: Scene, *, window: Window | None = None, margin: float = 0.0) -> Tensor:
        """Where the objects of the same clips are, grown by `margin` pixels: [B, 1, T, H, W] in [0, 1]."""
        return object_mask(scene, height=self.height, width=self.width, frames=self.frames, window=window, margin=margin)


# ------------------------------------------------------------------------------------------------------- statistics


@torch.no_grad()
def latent_statistics(vae: VAE, scene: Scene, size: ClipSize, *, batch: int = 16) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each latent channel, [z] float32 each, over the clips of `scene`.

    deviation = sqrt(variance of the mean + mean variance of the posterior). A channel that the VAE does not use has a
    tiny mean and a posterior of variance 1: divided by the deviation of its mean alone it would become unit noise, which
    the transformer would spend itself on predicting; this way it stays near 0.
    """
    total = square = spread = torch.zeros((), dtype=torch.float64)
    count = 0
    for start in range(0, len(scene), batch):
        mean, log_variance = vae.encode_moments(size.draw(scene[start : start + batch]))
        mean, variance = mean.double(), log_variance.double().exp()
        axes = (0, 2, 3, 4)
        total = total.to(mean.device) + mean.sum(axes)
        square = square.to(mean.device) + mean.square().sum(axes)
        spread = spread.to(mean.device) + variance.sum(axes)
        count += mean[:, 0].numel()
    average = total / count
    deviation = (square / count - average.square() + spread / count).clamp(min=1e-12).sqrt()
    return average.float(), deviation.float()


@torch.no_grad()
def fold_latent_statistics(vae: VAE, mean: Tensor, std: Tensor) -> None:
    """Changes the weights of `vae` so that its own latents are (latent - mean) / std and are decoded as before.

    Exact, as only 1x1x1 convolutions lie between: the last of the encoder, `conv1`, whose outputs are z means and then z
    log-variances, and the first of the decoder, `conv2`. `mean` and `std` are [z].
    """
    z = vae.config.z_dim
    mean, std = (values.to(vae.conv1.weight) for values in (mean, std))
    vae.conv1.weight[:z] /= std[:, None, None, None, None]
    vae.conv1.bias[:z] = (vae.conv1.bias[:z] - mean) / std
    vae.conv1.bias[z:] -= 2 * std.log()
    vae.conv2.bias += vae.conv2.weight[:, :, 0, 0, 0] @ mean
    vae.conv2.weight *= std[:, None, None, None]


# ------------------------------------------------------------------------------------------------------------- pool


@dataclass(frozen=True, kw_only=True)
class LatentPool:
    """What a transformer trains on, on its device: n clips, each with V captions."""

    latents: Tensor  # [n, C, T, h, w]
    ids: Tensor  # [n, V, text_len] int32
    lengths: Tensor  # [n, V] int32: real tokens
    empty_ids: Tensor  # [text_len] int32: the prompt without words
    empty_length: Tensor  # scalar int32
    first: Tensor | None = None  # [n, C, T, h, w]: latents of [first picture, grey, ...]
    first_last: Tensor | None = None  # of [first picture, grey, ..., last picture]

    @property
    def num_bytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values() if value is not None)


def caption_ids(
    scene: Scene, tokenizer: Tokenizer, *, variants: int, seed: int, complete: bool = False
) -> tuple[Tensor, Tensor, list[str]]:
    """(ids [n, V, text_len], lengths [n, V], the first caption of each clip); `scene` on the CPU."""
    rng = random.Random(seed)
    captions = []
    for description in descriptions(scene):
        captions += [caption_of(description, rng, complete=complete) for _ in range(variants)]
    ids, mask = tokenizer(captions)
    lengths = mask.sum(dim=1)
    return ids.int().unflatten(0, (-1, variants)), lengths.int().unflatten(0, (-1, variants)), captions[::variants]


def conditioning_videos(video: Tensor, *, has_last: bool) -> Tensor:
    """`video` [B, 3, T, H, W] with only its first frame, and perhaps its last, kept; mid-grey in between."""
    kept = torch.zeros_like(video)
    kept[:, :, 0] = video[:, :, 0]
    if has_last:
        kept[:, :, -1] = video[:, :, -1]
    return kept


@torch.no_grad()
def build_pool(
    vae: VAE,
    scene: Scene,
    tokenizer: Tokenizer,
    size: ClipSize,
    *,
    image_conditions: bool = False,
    variants: int = 4,
    seed: int = 0,
    batch: int = 32,
    dtype: torch.dtype = torch.bfloat16,
) -> LatentPool:
    """Draws and encodes the clips of `scene` (on the CPU) on the device of `vae`; latents are kept in `dtype`."""
    device = vae.conv1.weight.device
    ids, lengths, _ = caption_ids(scene, tokenizer, variants=variants, seed=seed)
    empty, empty_mask = tokenizer([""])
    stores: dict[str, Tensor] = {}
    rows = scene.to(device)
    for start in range(0, len(scene), batch):
        video = size.draw(rows[start : start + batch])
        videos = {"latents": video}
        if image_conditions:
            videos["first"] = conditioning_videos(video, has_last=False)
            videos["first_last"] = conditioning_videos(video, has_last=True)
        for name, clips in videos.items():
            latents = vae.encode(clips, whole=True)
            if name not in stores:
                stores[name] = torch.empty(len(scene), *latents.shape[1:], dtype=dtype, device=device)
            stores[name][start : start + batch] = latents
    return LatentPool(
        ids=ids.to(device),
        lengths=lengths.to(device),
        empty_ids=empty[0].int().to(device),
        empty_length=empty_mask.sum().int().to(device),
        **stores,
    )
