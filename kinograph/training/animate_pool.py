"""The clips that animate-nano trains on, drawn and encoded on the training device."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kinograph.config import ModelSpec
from kinograph.models.image_encoder import normalised
from kinograph.models.motion_encoder import MotionEncoder
from kinograph.models.vae import VAE
from kinograph.training.animate_material import Material, folded_mask, sample_material
from kinograph.training.animate_recipe import GUIDANCE, AnimateRecipe
from kinograph.training.dancers import PoseDrawing


@dataclass(frozen=True, kw_only=True)
class AnimatePool:
    """What the transformer trains on, on its device: n clips."""

    latents: Tensor  # [n, z, 1 + T, h, w]: the reference picture's, then the result's
    given: Tensor  # [n, forms, z, T, h, w]: latents of what is given, for each of `GUIDANCE`
    mask: Tensor  # [n, 4, T, h, w] uint8: what is given without guidance
    pose: Tensor  # [n, pose_dim, T, h, w]
    motion: Tensor  # [n, F, motion_dim]
    picture: Tensor  # [n, 3, s, s]: the reference picture as the image encoder's tower takes it

    @property
    def num_bytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values())


@torch.no_grad()
def build_pool(recipe: AnimateRecipe, vae: VAE, motion: MotionEncoder, *, dtype: torch.dtype, batch: int = 32) -> AnimatePool:
    """Draws and encodes the clips of `recipe` on the device of `vae`."""
    device, side, spec = vae.conv1.weight.device, recipe.side, recipe.spec
    share = 1.0 if recipe.relight else recipe.replace_share
    material = sample_material(recipe.num_clips, recipe.seed, replace_share=share).to(device)
    times = torch.arange(spec.num_frames, device=device)
    drawing = PoseDrawing(side, device)
    stores: dict[str, Tensor] = {}
    for start in range(0, len(material), batch):
        rows = material[start : start + batch]
        values = _encoded(rows, vae, motion, drawing, times, recipe)
        for name, value in values.items():
            if name not in stores:
                kept = value.dtype if name == "mask" else dtype
                stores[name] = torch.empty(len(material), *value.shape[1:], dtype=kept, device=device)
            stores[name][start : start + batch] = value
    return AnimatePool(**stores)


def _encoded(
    rows: Material, vae: VAE, motion: MotionEncoder, drawing: PoseDrawing, times: Tensor, recipe: AnimateRecipe
) -> dict[str, Tensor]:
    side, spec = recipe.side, recipe.spec
    clip, reference = rows.clip(times, side=side, lit=recipe.relight), rows.reference(side=side)
    mask = rows.mask(times, side=side)
    given = rows.holed(mask)
    forms = [torch.cat([clip[:, :, :frames], given[:, :, frames:]], dim=2) for frames in GUIDANCE]
    pictures = [vae.encode(reference[:, :, None], whole=True), vae.encode(clip, whole=True)]
    return {
        "latents": torch.cat(pictures, dim=2),
        "given": torch.stack([vae.encode(form, whole=True) for form in forms], dim=1),
        "mask": (folded_mask(1 - mask, spec.vae.stride) * rows.replaces[:, None, None, None, None]).to(torch.uint8),
        "pose": vae.encode(rows.poses(drawing, times), whole=True),
        "motion": motions(motion, rows.faces(times, size=recipe.config.face_size)),
        "picture": picture_of(reference, spec),
    }


def picture_of(reference: Tensor, spec: ModelSpec) -> Tensor:
    assert spec.image_encoder is not None
    return normalised(reference, spec.image_encoder.image_size)


def motions(encoder: MotionEncoder, faces: Tensor) -> Tensor:
    """[B, F, motion_dim] for faces [B, 3, F, S, S]."""
    frames = faces.transpose(1, 2)
    return torch.cat([encoder(part) for part in frames.flatten(0, 1).split(256)]).unflatten(0, frames.shape[:2])
