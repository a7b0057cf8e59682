"""Trains a nano transformer by flow matching on a pool of latents; its text encoder too, unless that is trained before.

    mode "text"     text alone
    mode "pinned"   some samples have their first latent frame given: clean, at timestep 0, outside the loss (ti2v)
    mode "channels" some samples have image conditioning channels, the others zeros there (i2v; t2v without the channels)

Levels come from the sampler's own schedule (`sampling.schedule`): uniform, then shifted. `t_range` restricts them to
what one of two experts is responsible for.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinograph.config import ModelSpec
from kinograph.models import dit as dit_model
from kinograph.models import t5
from kinograph.models.dit import DiT, Inputs
from kinograph.models.t5 import TextEncoder
from kinograph.models.tokenizer import Tokenizer
from kinograph.models.vae import VAE
from kinograph.runtime.kernels import set_attention
from kinograph.sampling.conditioning import Conditioning, Pinned
from kinograph.sampling.denoise import ExpertRun, denoise
from kinograph.sampling.guidance import batched
from kinograph.sampling.masks import frame_mask
from kinograph.sampling.schedule import NUM_TRAIN_TIMESTEPS, add_noise, shifted
from kinograph.sampling.solvers import make_solver
from kinograph.training.flow import DIT, TEXT, on_device_already, precise, real_tokens
from kinograph.training.judge import judge_accuracy
from kinograph.training.latents import ClipSize, LatentPool, build_pool, caption_ids, conditioning_videos
from kinograph.training.loss import velocity_loss
from kinograph.training.optim import FlatParameters, Optimizer, OptimizerConfig, optimized
from kinograph.training.parts import load_modules, save_parts
from kinograph.training.sheets import contact_sheet
from kinograph.training.toybox import Scene, sample_scenes

STEM = "dit"
MODES = ("text", "pinned", "channels")
ATTENTION: Mapping[str, Callable[[], AbstractContextManager]] = {
    "auto": nullcontext,
    "flash": lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION),
    "cudnn": lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION),
}


@dataclass(frozen=True, kw_only=True)
class DiTRecipe:
    """What to train, and on what. `spec.num_frames` and `spec.sizes[0]` give the clips."""

    spec: ModelSpec
    mode: str = "text"
    batch: int = 256
    num_clips: int = 32768
    captions_per_clip: int = 4
    shift: float = 4.0  # of the training levels
    t_range: tuple[float, float] = (0.0, 1.0)
    train_text: bool = True  # False: the text encoder stays as it is (`train_text` has trained it, other experts share it)
    text_dropout: float = 0.1
    pinned_share: float = 0.22
    image_share: float = 0.4  # of samples, in mode "channels"
    last_share: float = 0.3  # of those: with the last picture too
    attention: str = "auto"
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(kind="muon", lr=2e-3, muon_lr=0.02))
    num_eval: int = 64
    eval_seed: int = 7
    seed: int = 2

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        low, high = self.t_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"t_range must be two rising numbers in [0, 1]; got {self.t_range}")

    @property
    def size(self) -> ClipSize:
        width, height = self.spec.sizes[0]
        return ClipSize(frames=self.spec.num_frames, height=height, width=width)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        size = self.size
        return (self.spec.vae.z_dim, *self.spec.vae.latent_size(num_frames=size.frames, height=size.height, width=size.width))

    @property
    def num_tokens(self) -> int:
        return self.spec.dit.num_tokens(self.latent_shape[1:])

    def training_flops(self) -> int:
        """Of one sample: forward, and twice that for backward."""
        return 3 * dit_model.flops(self.spec.dit, self.num_tokens)


@lru_cache(maxsize=8)
def given_frames(frames: int, stride: int, *, has_last: bool, device: torch.device) -> Tensor:
    """[stride, T]: the mask channels of an image condition for `frames` latent frames.

    Cached, because a copy from the host may not happen inside a captured graph: the steps that warm up fill it.
    """
    return frame_mask(1 + stride * (frames - 1), has_last=has_last, stride=stride).to(device)


# ------------------------------------------------------------------------------------------------------------- a step


@dataclass
class DiTTraining:
    """A transformer and a text encoder in training, and how they are judged."""

    recipe: DiTRecipe
    dit: DiT
    text_encoder: TextEncoder
    weights: FlatParameters
    optimizer: Optimizer
    pool: LatentPool
    judged: Judged | None
    dtype: torch.dtype
    out: Path

    @property
    def title(self) -> str:
        return f"{self.recipe.spec.name}, {self.recipe.mode}"

    def loss(self) -> Mapping[str, Tensor]:
        """Flow matching on random rows of the pool."""
        recipe, pool = self.recipe, self.pool
        device = pool.latents.device
        rows = torch.randint(pool.latents.shape[0], (recipe.batch,), device=device)
        x0 = pool.latents[rows].float()
        noise = torch.randn_like(x0)
        sigma = self._levels(device)
        x = add_noise(x0, noise, sigma)
        t = (NUM_TRAIN_TIMESTEPS * sigma)[:, None].expand(-1, x0.shape[2])
        known = None
        if recipe.mode == "pinned":
            known = self._pinned(x0)
            x = torch.where(known.bool(), x0, x)
            t = t * (1 - known[:, 0, :, 0, 0])
        channels = self._channels(rows) if recipe.mode == "channels" else None
        text = self._text(rows)  # before the kernel is chosen: not every one takes its mask
        with ATTENTION[recipe.attention]():
            velocity = self.dit(x, t, text, channels)
        return {"loss": velocity_loss(velocity, x0, noise, known)}

    def _levels(self, device: torch.device) -> Tensor:
        """[B] levels within `t_range`, distributed there as the shift has them; `schedule.sample_t` for the whole range."""
        low, high = (shifted(t, 1 / self.recipe.shift) for t in self.recipe.t_range)  # the shift undone
        return shifted(low + (high - low) * torch.rand(self.recipe.batch, device=device), self.recipe.shift)

    def _pinned(self, x0: Tensor) -> Tensor:
        """[B, 1, T, 1, 1]: 1 at the first frame of the samples that have it given."""
        known = x0.new_zeros(x0.shape[0], 1, x0.shape[2], 1, 1)
        known[:, 0, 0, 0, 0] = (torch.rand(x0.shape[0], device=x0.device) < self.recipe.pinned_share).float()
        return known

    def _channels(self, rows: Tensor) -> Tensor:
        """[B, stride + C, T, h, w]: zeros for samples without a picture, else mask and latents of what is given."""
        pool, recipe = self.pool, self.recipe
        assert pool.first is not None and pool.first_last is not None, "the pool was built without image conditions"
        chance = torch.rand(2, recipe.batch, 1, 1, 1, 1, device=rows.device)
        has_image, has_last = (chance[0] < recipe.image_share).float(), chance[1] < recipe.last_share
        channels = torch.where(
            has_last, condition_channels(pool.first_last[rows], has_last=True), condition_channels(pool.first[rows], has_last=False)
        )
        return channels * has_image

    def _text(self, rows: Tensor) -> Tensor:
        """[B, text_len, dim]: one caption of each clip, now and then the empty one; zero after the real tokens."""
        pool, batch = self.pool, rows.shape[0]
        variant = torch.randint(pool.ids.shape[1], (batch,), device=rows.device)
        dropped = torch.rand(batch, device=rows.device) < self.recipe.text_dropout
        ids = torch.where(dropped[:, None], pool.empty_ids, pool.ids[rows, variant])
        lengths = torch.where(dropped, pool.empty_length, pool.lengths[rows, variant])
        return self.text_encoder(ids, real_tokens(lengths, ids.shape[1]))

    # ----------------------------------------------------------------------------------------------------- judging

    def averaged(self) -> tuple[DiT, TextEncoder]:
        """Models of their own with the moving average of the weights, in the dtype of training."""
        device, ema = self.weights.master.device, self.optimizer.state.ema
        dit, text_encoder = DiT(self.recipe.spec.dit), TextEncoder(self.recipe.spec.text)
        dit.load_state_dict(self.weights.of_module(DIT, ema))
        trained = self.weights.of_module(TEXT, ema) if self.recipe.train_text else self.text_encoder.state_dict()
        text_encoder.load_state_dict(trained)
        for model in (dit, text_encoder):
            model.to(device, self.dtype).eval().requires_grad_(False)
        return dit, text_encoder

    def evaluate(self) -> str:
        """One line: what the judge sees in samples of held-out prompts. Saves the weights first."""
        self.save()
        if self.judged is None:
            return f"saved {STEM} to {self.out}"
        return self.judged.evaluate(*self.averaged(), sheet=self.out / f"{STEM}.png")

    def save(self) -> None:
        """The moving average of both modules, as `dit.part*`."""
        tensors = self.weights.named(self.optimizer.state.ema)
        if not self.recipe.train_text:
            tensors |= {f"{TEXT}.{name}": tensor for name, tensor in self.text_encoder.state_dict().items()}
        save_parts(tensors, self.out, STEM, metadata={"model": self.recipe.spec.name, "mode": self.recipe.mode})


def condition_channels(latents: Tensor, *, has_last: bool, stride: int = 4) -> Tensor:
    """[B, stride + C, T, h, w]: the mask channels before the latents [B, C, T, h, w] of the pictures among grey."""
    mask = given_frames(latents.shape[2], stride, has_last=has_last, device=latents.device).to(latents.dtype)
    return torch.cat([mask[None, :, :, None, None].expand(latents.shape[0], -1, -1, *latents.shape[3:]), latents], dim=1)


# ----------------------------------------------------------------------------------------------------------- judging


@dataclass
class Judged:
    """Held-out prompts, sampled with the project's own sampler, and judged. Draws no number from a default generator."""

    recipe: DiTRecipe
    vae: VAE
    scenes: Scene  # on the CPU
    captions: list[str]
    ids: Tensor
    lengths: Tensor
    empty: tuple[Tensor, Tensor]  # ids [1, L], lengths [1]
    other: DiT | None = None  # the other expert, where one of two is trained
    batch: int = 32

    @classmethod
    def prepare(cls, recipe: DiTRecipe, vae: VAE, tokenizer: Tokenizer) -> Judged:
        device = vae.conv1.weight.device
        scenes = sample_scenes(recipe.num_eval, recipe.eval_seed, split="held_out")
        ids, lengths, captions = caption_ids(scenes, tokenizer, variants=1, seed=recipe.eval_seed, complete=True)
        empty_ids, empty_mask = tokenizer([""])
        return cls(
            recipe=recipe,
            vae=vae,
            scenes=scenes,
            captions=captions,
            ids=ids[:, 0].to(device),
            lengths=lengths[:, 0].to(device),
            empty=(empty_ids.int().to(device), empty_mask.sum(1).int().to(device)),
        )

    @torch.no_grad()
    def evaluate(self, dit: DiT, text_encoder: TextEncoder, *, sheet: Path) -> str:
        lines = []
        kinds = {"text": ("prompt",), "pinned": ("prompt", "picture"), "channels": ("prompt", "picture")}[self.recipe.mode]
        for kind in kinds:
            started = time.monotonic()
            count = len(self.scenes) if kind == "prompt" else len(self.scenes) // 4
            clips = self.sample(dit, text_encoder, count, with_picture=kind == "picture")
            verdict = judge_accuracy(clips, self.scenes[:count])
            seen = " ".join(f"{name} {100 * share:.0f}" for name, share in verdict.items())
            lines.append(f"eval {kind}: {seen} % of {count} clips, {time.monotonic() - started:.1f} s")
            shown = min(count, 16)
            file = sheet.with_stem(f"{sheet.stem}-{kind}")
            contact_sheet(clips[:shown].float().cpu(), file, self.captions[:shown], columns=2)
        return "\n".join(lines)

    def sample(self, dit: DiT, text_encoder: TextEncoder, count: int, *, with_picture: bool) -> Tensor:
        """Clips [count, 3, T, H, W] for the first `count` prompts, as the published settings of the model sample them."""
        spec = self.recipe.spec
        noise = torch.randn(count, *self.recipe.latent_shape, generator=torch.Generator().manual_seed(self.recipe.eval_seed))
        clips = []
        for start in range(0, count, self.batch):
            rows = slice(start, min(start + self.batch, count))
            conditioning = self._conditioning(text_encoder, rows, with_picture=with_picture)
            solver = make_solver(spec.solver, num_steps=spec.num_steps, shift=spec.shift)
            latents = denoise(self._experts(dit), solver, noise[rows].to(self.ids.device), conditioning, passes=batched)
            clips += [self.vae.decode(part, whole=True) for part in latents.split(8)]
        return torch.cat(clips)

    def _experts(self, dit: DiT) -> list[ExpertRun]:
        """`dit` for every level, or for those it is trained on, with `other` for the rest."""
        low, high = self.recipe.t_range
        if self.other is None or (low, high) == (0.0, 1.0):
            runs = [("all_noise", 0.0, dit)]
        elif high == 1.0:
            runs = [("high_noise", low, dit), ("low_noise", 0.0, self.other)]
        else:
            runs = [("high_noise", high, self.other), ("low_noise", 0.0, dit)]
        scale = self.recipe.spec.experts[-1].guidance_scale
        return [
            ExpertRun(name=name, t_min=t_min, guidance_scale=scale, on_device=on_device_already(model)) for name, t_min, model in runs
        ]

    def _conditioning(self, text_encoder: TextEncoder, rows: slice, *, with_picture: bool) -> Conditioning:
        ids, lengths = self.ids[rows], self.lengths[rows]
        positive = text_encoder(ids, real_tokens(lengths, ids.shape[1]))
        empty_ids, empty_length = self.empty
        negative = text_encoder(empty_ids, real_tokens(empty_length, ids.shape[1])).expand_as(positive)
        channels, pinned = None, None
        if with_picture:
            video = self.recipe.size.draw(self.scenes[rows].to(ids.device))
            if self.recipe.mode == "pinned":
                pinned = self._pinned(video)
            else:
                latents = self.vae.encode(conditioning_videos(video, has_last=False), whole=True)
                channels = condition_channels(latents, has_last=False)
        elif self.recipe.mode == "channels":
            spec = self.recipe.spec
            channels = torch.zeros(len(ids), spec.dit.in_dim - spec.dit.out_dim, *self.recipe.latent_shape[1:], device=ids.device)
        inputs = partial(Inputs, channels=channels)
        return Conditioning(positive=inputs(text=positive), negative=inputs(text=negative), pinned=pinned)

    def _pinned(self, video: Tensor) -> Pinned:
        mask = torch.zeros(1, 1, self.recipe.latent_shape[1], 1, 1, device=video.device)
        mask[:, :, 0] = 1
        return Pinned(latents=self.vae.encode(video[:, :, :1], whole=True), mask=mask)


# ------------------------------------------------------------------------------------------------------------ running


def fresh_models(spec: ModelSpec, *, seed: int) -> tuple[DiT, TextEncoder]:
    torch.manual_seed(seed)
    dit, text_encoder = DiT(spec.dit), TextEncoder(spec.text)
    dit_model.init_weights(dit)
    t5.init_weights(text_encoder)
    return dit, text_encoder


def prepare(
    recipe: DiTRecipe,
    pool: LatentPool,
    judged: Judged | None,
    out: Path,
    *,
    dtype: torch.dtype,
    initial: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> DiTTraining:
    """The models of `recipe` on the device of `pool`, ready for `flow.trainer_of`.

    `initial`: state dicts by module, as `load_dit` gives them; what is not in it starts from fresh weights.
    """
    device = pool.latents.device
    dit, text_encoder = fresh_models(recipe.spec, seed=recipe.seed)
    dit.to(device)
    text_encoder.to(device)
    for key, module in ((DIT, dit), (TEXT, text_encoder)):
        if initial is not None and key in initial:
            module.load_state_dict(initial[key])
    set_attention(dit, "sdpa")  # the kernel is chosen by `recipe.attention`
    trained: dict[str, nn.Module] = {DIT: dit}
    if recipe.train_text:
        trained[TEXT] = text_encoder
    else:
        text_encoder.to(dtype).requires_grad_(False)
    weights, optimizer = optimized(trained, recipe.optimizer, dtype=dtype, precise=precise)
    out.mkdir(parents=True, exist_ok=True)
    return DiTTraining(
        recipe=recipe,
        dit=dit,
        text_encoder=text_encoder,
        weights=weights,
        optimizer=optimizer,
        pool=pool,
        judged=judged,
        dtype=dtype,
        out=out,
    )


def pool_of(recipe: DiTRecipe, vae: VAE, tokenizer: Tokenizer) -> LatentPool:
    """The clips that `recipe` trains on, encoded by `vae` on its device."""
    scenes = sample_scenes(recipe.num_clips, recipe.seed)
    dtype = torch.bfloat16 if vae.conv1.weight.is_cuda else torch.float32
    return build_pool(
        vae,
        scenes,
        tokenizer,
        recipe.size,
        image_conditions=recipe.mode == "channels",
        variants=recipe.captions_per_clip,
        seed=recipe.seed,
        dtype=dtype,
    )


def load_dit(folder: str | Path) -> dict[str, dict[str, Tensor]]:
    """State dicts of the transformer and the text encoder that a training left in `folder`, by module."""
    return load_modules(folder, STEM, (DIT, TEXT))


def without_channels(state: Mapping[str, Tensor], in_dim: int) -> dict[str, Tensor]:
    """The weights of a transformer for the first `in_dim` of its input channels: exact where the others are zero."""
    return {**state, "patch_embedding.weight": state["patch_embedding.weight"][:, :in_dim]}
