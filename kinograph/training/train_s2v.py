"""Trains the nano speech-to-video transformer on drawn talkers, by flow matching on a pool of encoded clips.

Each sample has what the task gives at inference: a reference picture of the same person at another time, the latents of the
73 frames before (grey where the video had not begun, or the reference standing still), or none of these; the features that
the real speech encoder gives of the real sound, or zeros; a pose, or none.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from kinograph.models import dit_s2v
from kinograph.models.dit import CrossAttention
from kinograph.models.dit_s2v import Clip, S2VDiT
from kinograph.ops.attention import attention
from kinograph.runtime.kernels import set_attention
from kinograph.sampling.schedule import NUM_TRAIN_TIMESTEPS, add_noise, sample_t
from kinograph.training.flow import DIT, precise
from kinograph.training.loss import velocity_loss
from kinograph.training.optim import FlatParameters, Optimizer, optimized
from kinograph.training.parts import load_modules, save_parts
from kinograph.training.s2v_pool import TalkerPool, Texts
from kinograph.training.s2v_recipe import S2VRecipe
from kinograph.training.s2v_samples import Judged
from kinograph.training.train_dit import without_channels

STEM = "s2v"


# ------------------------------------------------------------------------------------------------------------- a step


def worn(latents: Tensor, most: float, chance: Tensor, *, tint: float = 0.0) -> Tensor:
    """`latents` [B, z, T, h, w] with noise of a deviation up to `most`: at inference they are of frames that the model made.

    `chance` [B] in 0..1 says how much of it; `tint` is how much of the noise is the same for a whole channel.
    """
    latents = latents.float()
    noise = torch.randn_like(latents) + tint * torch.randn_like(latents[:, :, :1, :1, :1])
    return latents + noise * (most * chance.square())[:, None, None, None, None]


@dataclass
class S2VTraining:
    """A transformer in training, and how it is judged."""

    recipe: S2VRecipe
    dit: S2VDiT
    weights: FlatParameters
    optimizer: Optimizer
    pools: Sequence[tuple[TalkerPool, int]]  # with the samples of a step from each
    texts: Texts
    judged: Judged | None
    dtype: torch.dtype
    out: Path

    @property
    def title(self) -> str:
        return self.recipe.spec.name

    def loss(self) -> Mapping[str, Tensor]:
        parts = [(self._loss(pool, batch), batch) for pool, batch in self.pools]
        total = sum(batch for _, batch in parts)
        names = ("motion", "first")
        values = {names[pool.motion is None]: loss.detach() for (pool, _), (loss, _) in zip(self.pools, parts)}
        return {"loss": torch.stack([loss * (batch / total) for loss, batch in parts]).sum(), **values}

    def _loss(self, pool: TalkerPool, batch: int) -> Tensor:
        recipe, device = self.recipe, pool.clip.device
        rows = torch.randint(len(pool), (batch,), device=device)
        chance = torch.rand(4, batch, device=device)
        x0 = pool.clip[rows].float()
        noise, sigma = torch.randn_like(x0), sample_t(batch, shift=recipe.shift, device=device)
        empty = len(self.texts.table) - 1
        text = self.texts.table[torch.where(chance[0] < recipe.text_dropout, empty, pool.caption[rows])]
        sound = pool.sound[rows].float() * (chance[1] >= recipe.sound_dropout).float()[:, None, None, None]
        clip = Clip(
            text=text,
            audio=sound,
            reference=worn(pool.reference[rows], recipe.reference_noise, chance[2]),
            motion=None if pool.motion is None else worn(pool.motion[rows], recipe.motion_noise, chance[3], tint=recipe.tint),
            pose=pool.pose[rows],
        )
        velocity = self.dit(add_noise(x0, noise, sigma), NUM_TRAIN_TIMESTEPS * sigma, **vars(self.dit.embed(clip)))
        return velocity_loss(velocity, x0, noise)

    def averaged(self) -> S2VDiT:
        dit = S2VDiT(self.recipe.config)
        dit.load_state_dict(self.weights.of_module(DIT, self.optimizer.state.ema))
        return dit.to(self.weights.master.device, self.dtype).eval().requires_grad_(False)

    def evaluate(self) -> str:
        """Saves the weights, then judges samples of held-out sounds and people."""
        self.save()
        if self.judged is None:
            return f"saved {STEM} to {self.out}"
        return self.judged.evaluate(self.averaged(), self.texts, sheet=self.out / f"{STEM}.png")

    def save(self) -> None:
        """The moving average, as `s2v.part*`."""
        save_parts(self.weights.named(self.optimizer.state.ema), self.out, STEM, metadata={"model": self.recipe.spec.name})


# ------------------------------------------------------------------------------------------------------------ running


def initial_state(recipe: S2VRecipe, base: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Fresh weights, under them those of an image-to-video transformer `base` for what both have; extra blocks are left out."""
    torch.manual_seed(recipe.seed)
    dit = S2VDiT(recipe.config)
    dit_s2v.init_weights(dit)
    state = dit.state_dict()
    if base is not None:
        base = without_channels(base, recipe.spec.dit.in_dim)
        fitting = {name: tensor for name, tensor in base.items() if name in state and state[name].shape == tensor.shape}
        lacking = {name for name in base if name not in fitting and not name.startswith("blocks.")}
        if lacking:
            raise ValueError(f"the weights to start from are of another size: {sorted(lacking)[:3]}")
        state |= {name: tensor.to(state[name].dtype) for name, tensor in fitting.items()}
        # The newest frame of the motion looks like the noisy ones to start with.
        state["frame_packer.proj.weight"] = state["patch_embedding.weight"].clone()
        state["frame_packer.proj.bias"] = state["patch_embedding.bias"].clone()
    return state


def prepare(
    recipe: S2VRecipe,
    pools: Sequence[tuple[TalkerPool, int]],
    texts: Texts,
    judged: Judged | None,
    out: Path,
    *,
    dtype: torch.dtype,
    state: Mapping[str, Tensor],
) -> S2VTraining:
    """The transformer with the weights `state` on the device of the pools, ready for `flow.trainer_of`."""
    dit = S2VDiT(recipe.config)
    dit.load_state_dict(dict(state))
    dit.to(pools[0][0].clip.device)
    set_attention(dit, "sdpa")
    for injection in cast(Iterable[CrossAttention], dit.audio_injector.injector):
        injection.attend = partial(attention, implementation="sdpa")
    weights, optimizer = optimized({DIT: dit}, recipe.optimizer, dtype=dtype, precise=_precise)
    out.mkdir(parents=True, exist_ok=True)
    return S2VTraining(recipe, dit, weights, optimizer, pools, texts, judged, dtype, out)


def _precise(name: str, parameter: Tensor) -> bool:
    return precise(name, parameter) or "casual_audio_encoder" in name or "trainable_cond_mask" in name


def load_s2v(folder: str | Path) -> dict[str, Tensor]:
    """The transformer that a training left in `folder`."""
    return load_modules(folder, STEM, (DIT,))[DIT]
