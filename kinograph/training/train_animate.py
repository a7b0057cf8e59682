"""Trains the nano animation model on dancers: a transformer and its image encoder together, and then a relighting LoRA.

    1. the motion encoder learns to tell the expression of drawn faces, and is frozen (`train_motion_encoder`)
    2. flow matching on a pool of clips, half of them animation and half replacement, first clips and continued ones
    3. `relight`: a LoRA on the frozen model, from clips in which the scene's light falls on the character

The text encoder is the shared one and stays as it is. Half of the samples get noise for text, so that the model listens to
no words: what is to be seen is given by the other inputs.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from kinograph.config import AnimateConfig, ModelSpec
from kinograph.models import dit_animate, motion_encoder
from kinograph.models.dit_animate import AnimateDiT, CrossAttention
from kinograph.models.image_encoder import ImageEncoder
from kinograph.models.motion_encoder import MotionEncoder
from kinograph.models.vae import VAE
from kinograph.runtime.kernels import set_attention
from kinograph.sampling.schedule import NUM_TRAIN_TIMESTEPS, add_noise, sample_t
from kinograph.training import dancers
from kinograph.training.animate_material import joined_channels, with_guidance
from kinograph.training.animate_pool import AnimatePool, build_pool
from kinograph.training.animate_recipe import FORMS, GUIDANCE, AnimateRecipe
from kinograph.training.animate_samples import judged
from kinograph.training.flow import DIT, TEXT, precise
from kinograph.training.loss import velocity_loss
from kinograph.training.low_rank import adapt, adapter_tensors, save_adapter
from kinograph.training.optim import FlatParameters, Optimizer, optimized
from kinograph.training.parts import load_modules, save_parts

STEM = "animate"
IMAGE, LORA = "image_encoder", "lora"
LORA_FOLDER = "relighting_lora"
PART_BYTES = 14 * 2**20


# -------------------------------------------------------------------------------------------------------------- a step


@dataclass
class AnimateTraining:
    """A transformer and its image encoder in training, or the LoRA of a finished one."""

    recipe: AnimateRecipe
    dit: AnimateDiT
    image_encoder: ImageEncoder
    motion: MotionEncoder
    text: Tensor  # [1, text_len, text_dim]: the embedded default prompt
    text_encoder: Mapping[str, Tensor]  # weights that are only handed on
    weights: FlatParameters
    optimizer: Optimizer
    pool: AnimatePool
    vae: VAE
    dtype: torch.dtype
    out: Path
    changes: nn.ModuleDict | None = None

    @property
    def title(self) -> str:
        return f"{self.recipe.spec.name}, {'relighting' if self.changes is not None else 'dances'}"

    def loss(self) -> Mapping[str, Tensor]:
        """Flow matching on random rows of the pool."""
        recipe, pool = self.recipe, self.pool
        device = pool.latents.device
        rows = torch.randint(pool.latents.shape[0], (recipe.batch,), device=device)
        x0 = pool.latents[rows].float()
        noise = torch.randn_like(x0)
        sigma = sample_t(recipe.batch, shift=recipe.shift, device=device)
        velocity = self.dit(
            add_noise(x0, noise, sigma),
            NUM_TRAIN_TIMESTEPS * sigma,
            text=self._text(),
            channels=self._channels(rows, x0[:, :, :1]),
            pose=pool.pose[rows].to(self.dtype),
            image=self.dit.image_tokens(self.image_encoder.visual(pool.picture[rows])),
            face=self.dit.face_tokens(pool.motion[rows]),
        )
        return {"loss": velocity_loss(velocity, x0, noise)}

    def _channels(self, rows: Tensor, reference: Tensor) -> Tensor:
        """[B, 4 + z, 1 + T, h, w]: with no, one or five frames of a clip before."""
        pool, mask = self.pool, self.pool.mask[rows].float()
        chance = torch.rand(self.recipe.batch, device=rows.device)
        form = (chance > FORMS[0]).long() + (chance > FORMS[0] + FORMS[1]).long()
        masks = torch.stack([with_guidance(mask, frames) for frames in GUIDANCE], dim=1)
        mask = masks[torch.arange(len(rows), device=rows.device), form]
        return joined_channels(reference, mask, pool.given[rows, form].float())

    def _text(self) -> Tensor:
        """[B, text_len, text_dim]: the default prompt, or as often noise of any length."""
        batch, (_, length, width) = self.recipe.batch, self.text.shape
        chance = torch.rand(2, batch, 1, 1, device=self.text.device)
        position = torch.arange(length, device=self.text.device)[None, :, None]
        noise = torch.randn(batch, length, width, device=self.text.device, dtype=self.text.dtype)
        noise = noise * (position < 1 + chance[0] * (length - 1))
        return torch.where(chance[1] < 0.5, self.text, noise)

    # ------------------------------------------------------------------------------------------------- judging, saving

    def averaged(self) -> tuple[AnimateDiT, ImageEncoder]:
        """Models with the moving average of the weights, in the dtype of training."""
        device, average = self.weights.master.device, self.optimizer.state.ema
        dit, image_encoder = AnimateDiT(self.recipe.config), ImageEncoder(self.image_encoder.config)
        motion = {f"motion_encoder.{name}": tensor for name, tensor in self.motion.state_dict().items()}
        if self.changes is None:
            dit.load_state_dict(self.weights.of_module(DIT, average) | motion)
            image_encoder.load_state_dict(self.weights.of_module(IMAGE, average))
        else:
            dit.load_state_dict({name: tensor.float() for name, tensor in self.dit.state_dict().items()} | motion)
            image_encoder.load_state_dict(self.image_encoder.state_dict())
            changes = self.weights.of_module(LORA, average)
            with torch.no_grad():
                for name, module in dit.named_modules():
                    key = name.replace(".", "/")
                    if f"{key}.lora_A.weight" in changes:
                        module.weight += (changes[f"{key}.lora_B.weight"] @ changes[f"{key}.lora_A.weight"]).to(module.weight)
        for model in (dit, image_encoder):
            model.to(device, self.dtype).eval().requires_grad_(False)
        dit.motion_encoder.float()
        return dit, image_encoder

    def evaluate(self) -> str:
        """Saves the weights, and says what the judge sees in two chained clips of held-out dances, in both modes."""
        self.save()
        if not self.recipe.num_eval:
            return f"saved {STEM} to {self.out}"
        return judged(self.recipe, *self.averaged(), self.vae, self.text, sheet=self.out / f"{'relight' if self.changes else STEM}.jpg")

    def save(self) -> None:
        average = self.optimizer.state.ema
        if self.changes is not None:
            save_adapter(adapter_tensors(self.weights.of_module(LORA, average)), self.out / LORA_FOLDER)
            return
        tensors = dict(self.weights.named(average))
        tensors |= {f"{DIT}.motion_encoder.{name}": tensor for name, tensor in self.motion.state_dict().items()}
        tensors |= {f"{TEXT}.{name}": tensor for name, tensor in self.text_encoder.items()}
        save_parts(tensors, self.out, STEM, metadata={"model": self.recipe.spec.name}, limit=PART_BYTES)


# ------------------------------------------------------------------------------------------------------------- running


def train_motion_encoder(encoder: MotionEncoder, *, steps: int, batch: int = 128, lr: float = 3e-3) -> float:
    """Teaches the coordinates of an initialised `encoder` to be expressions of drawn faces; the last loss."""
    device = encoder.dec.direction.weight.device
    characters = dancers.sample_characters(512, torch.Generator().manual_seed(0)).to(device)
    optimizer = torch.optim.Adam(encoder.enc.parameters(), lr=lr, betas=(0.9, 0.99))
    middle, spread = (torch.tensor(values, device=device) for values in ((0.1, 0.4, 0.8), (0.5, 0.3, 0.35)))
    loss = torch.zeros(())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20) * (1 - step / steps)
        expression = torch.rand(batch, 1, 3, device=device) * torch.tensor([2.0, 1.0, 1.0], device=device)
        expression[..., 0] -= 1
        skin = characters.colours[torch.randint(512, (batch,), device=device), dancers.SKIN]
        faces = dancers.draw_faces(skin, expression, size=encoder.size)[:, :, 0]
        faces = faces + 0.05 * torch.randn_like(faces)
        found = encoder.enc(faces)
        wanted = torch.zeros_like(found)
        wanted[:, :3] = (expression[:, 0] - middle) / spread
        loss = (found - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.requires_grad_(False)
    return float(loss.detach())


def fresh_models(spec: ModelSpec, *, seed: int) -> tuple[AnimateDiT, ImageEncoder]:
    torch.manual_seed(seed)
    assert isinstance(spec.dit, AnimateConfig) and spec.image_encoder is not None
    dit, image_encoder = AnimateDiT(spec.dit), ImageEncoder(spec.image_encoder)
    dit_animate.init_weights(dit)
    for block in dit.blocks:
        cross_attn = cast(CrossAttention, block.cross_attn)
        nn.init.xavier_uniform_(cross_attn.v_img.weight)  # the identity comes from the picture: it is wanted from the start
    return dit, image_encoder


def adopt(dit: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Takes over the tensors of another model whose names and shapes agree; how many."""
    own = dit.state_dict()
    taken = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    dit.load_state_dict(taken, strict=False)
    return len(taken)


def normalise_pose(dit: AnimateDiT, pose: Tensor) -> None:
    """Lets the pose patches see `pose` [n, c, T, h, w] with mean 0 and deviation 1 at first: lines on black change latents little."""
    sample = pose[:2048].float()
    mean, deviation = sample.mean((0, 2, 3, 4)), sample.std(0).mean((1, 2, 3)).clamp(min=1e-3)
    layer = dit.pose_patch_embedding
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight /= deviation[None, :, None, None, None].to(layer.weight)
        layer.bias -= (layer.weight.sum((2, 3, 4)) @ mean.to(layer.weight)).to(layer.bias)


def prepare(
    recipe: AnimateRecipe,
    vae: VAE,
    text: Tensor,
    out: Path,
    *,
    dtype: torch.dtype,
    initial: Mapping[str, Mapping[str, Tensor]],
    motion_steps: int = 600,
    say: Callable[[str], None] = print,
) -> AnimateTraining:
    """The models of `recipe` on the device of `vae`, ready for `flow.trainer_of`.

    `initial`: state dicts by module. For the base model the transformer's may be those of another kind of model, or missing;
    for `recipe.relight` they are those that training left.
    """
    device = vae.conv1.weight.device
    dit, image_encoder = fresh_models(recipe.spec, seed=recipe.seed)
    if recipe.relight:
        dit.load_state_dict(initial[DIT])
        image_encoder.load_state_dict(initial[IMAGE])
    else:
        say(f"{adopt(dit, initial.get(DIT, {}))} tensors taken over from the initial model")
    dit.to(device)
    image_encoder.to(device)
    motion = dit.motion_encoder
    if not recipe.relight:
        motion_encoder.init_weights(motion)
        say(f"motion encoder: loss {train_motion_encoder(motion, steps=motion_steps):.4f}")
    motion.requires_grad_(False)
    started = time.monotonic()
    pool = build_pool(recipe, vae, motion, dtype=dtype)
    say(f"pool: {recipe.num_clips} clips, {pool.num_bytes / 2**30:.2f} GiB, {time.monotonic() - started:.1f} s")
    dit.motion_encoder = nn.Identity()  # type: ignore[assignment]  # frozen, and kept apart from what is trained
    set_attention(dit, "sdpa")
    changes = None
    trained: dict[str, nn.Module]
    if recipe.relight:
        dit.to(dtype)
        image_encoder.to(dtype).requires_grad_(False)
        changes = adapt(dit, recipe.rank)
        trained = {LORA: changes}
    else:
        normalise_pose(dit, pool.pose)
        trained = {DIT: dit, IMAGE: image_encoder}
    weights, optimizer = optimized(trained, recipe.optimizer, dtype=dtype, precise=precise)
    out.mkdir(parents=True, exist_ok=True)
    return AnimateTraining(
        recipe=recipe,
        dit=dit,
        image_encoder=image_encoder,
        motion=motion,
        text=text.to(device, dtype),
        text_encoder=initial.get(TEXT, {}),
        weights=weights,
        optimizer=optimizer,
        pool=pool,
        vae=vae,
        dtype=dtype,
        out=out,
        changes=changes,
    )


def load_animate(folder: str | Path) -> dict[str, dict[str, Tensor]]:
    """State dicts by module that a training left in `folder`."""
    return load_modules(folder, STEM, (DIT, IMAGE, TEXT))
