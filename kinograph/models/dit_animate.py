"""The diffusion transformer of character animation and replacement.

It is `dit.DiT` with four more inputs, and one latent frame more than the clip: the reference picture, in front.

- `channels`: which pixels are given, and the latents of what is given (reference, last frames of the clip before, background)
- `pose`: latents of the drawn skeletons, patched and added to the tokens of the clip's own frames
- `image`: tokens of the reference picture; every cross-attention attends to them apart from the text and adds the results
- `face`: tokens of the driving face; after every fifth block, each frame's tokens attend to those of their frame

The last two depend neither on the noise nor on the timestep: `AnimateDiT.image_tokens` is called once per reference picture,
`AnimateDiT.motion` once per face, `AnimateDiT.face_tokens` once per clip. The frame of the reference is predicted with the
others; whoever decodes drops it.
Precision and seams are those of `dit.DiT`. Axes as there; K face tokens of a frame, I image tokens, F pixel frames.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinograph.config import AnimateConfig
from kinograph.models import dit, motion_encoder
from kinograph.models.dit import Attention, DiT, LayerNorm, PatchEmbedding, RMSNorm, patch_grid, unpatchify
from kinograph.models.face_encoder import FaceBlock, FaceEncoder, with_reference_frame
from kinograph.models.motion_encoder import MotionEncoder
from kinograph.ops.rope import rope_table

FACES_AT_ONCE = 8  # in the motion encoder; bounds its memory and changes nothing else
IMAGE_EPS = 1e-5


@dataclass(frozen=True)
class Inputs:
    """Everything `AnimateDiT.forward` takes after `t`: call `dit(x, t, **vars(inputs))`. T counts the clip's latent frames."""

    text: Tensor  # [B, M, text_dim], zero-padded to text_len rows
    channels: Tensor  # [B, Cy, 1 + T, H, W], joined after the latents
    pose: Tensor  # [B, pose_dim, T, H, W]
    image: Tensor  # [B, I, dim], from `AnimateDiT.image_tokens`
    face: Tensor  # [B, 1 + T, K, dim], from `AnimateDiT.face_tokens`


class ImageEmbedding(nn.Module):
    """The image encoder's tokens [B, I, image_dim] as tokens of the transformer [B, I, dim], float32."""

    def __init__(self, image_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            LayerNorm(image_dim, eps=IMAGE_EPS),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, dim),
            LayerNorm(dim, eps=IMAGE_EPS),
        )

    def forward(self, image: Tensor) -> Tensor:
        norm_in, linear_in, activation, linear_out, norm_out = self.proj
        return norm_out(linear_out(activation(linear_in(norm_in(image).to(norm_in.weight.dtype)))))


class CrossAttention(Attention):
    """Attention from the tokens to the text and, with keys and values of their own, to the image; the results are summed."""

    def __init__(self, dim: int, num_heads: int, *, eps: float, text_len: int) -> None:
        super().__init__(dim, num_heads, eps=eps)
        self.text_len = text_len
        self.k_img = nn.Linear(dim, dim)
        self.v_img = nn.Linear(dim, dim)
        self.norm_k_img = RMSNorm(dim, eps=eps)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[B, L, dim] for `x` [B, L, dim] and `context` [B, I + text_len, dim]: image tokens, then text."""
        image, text = context.split([context.shape[1] - self.text_len, self.text_len], dim=1)
        q = self.split_heads(self.norm_q(self.q(x)))
        from_text = self.attend(q, self.split_heads(self.norm_k(self.k(text))), self.split_heads(self.v(text)))
        from_image = self.attend(q, self.split_heads(self.norm_k_img(self.k_img(image))), self.split_heads(self.v_img(image)))
        return self.o((from_text + from_image).flatten(2))


class FaceAdapter(nn.Module):
    """The face blocks, in the order in which they are used."""

    def __init__(self, config: AnimateConfig) -> None:
        super().__init__()
        count = config.num_layers // config.face_every
        self.fuser_blocks = nn.ModuleList(FaceBlock(config.dim, config.num_heads) for _ in range(count))


class AnimateDiT(DiT):
    """The transformer of the animation model, with the published parameter names."""

    config: AnimateConfig

    def __init__(self, config: AnimateConfig) -> None:
        super().__init__(config)
        for block in self.blocks:
            block.cross_attn = CrossAttention(config.dim, config.num_heads, eps=config.eps, text_len=config.text_len)
        self.pose_patch_embedding = PatchEmbedding(config.pose_dim, config.dim, config.patch_size)
        self.img_emb = ImageEmbedding(config.image_dim, config.dim)
        self.motion_encoder = MotionEncoder(config.face_size, config.motion_dim, config.num_motions)
        self.face_encoder = FaceEncoder(config.motion_dim, config.dim, head_dim=config.face_dim, num_heads=config.face_heads)
        self.face_adapter = FaceAdapter(config)

    def image_tokens(self, image: Tensor) -> Tensor:
        """[B, I, dim] float32 for the image encoder's tokens [B, I, image_dim]."""
        return self.img_emb(image)

    def motion(self, faces: Tensor) -> Tensor:
        """Motion vectors [B, F, motion_dim] float32 for faces [B, 3, F, face_size, face_size] in [-1, 1], each on its own."""
        frames = faces.transpose(1, 2)  # [B, F, 3, S, S]
        parts = [self.motion_encoder(part) for part in frames.flatten(0, 1).split(FACES_AT_ONCE)]
        return torch.cat(parts).unflatten(0, frames.shape[:2])

    def no_motion(self, num_frames: int) -> Tensor:
        """[1, num_frames, motion_dim]: the motion vectors of black frames, which stand for "no face" in the negative pass."""
        size = self.config.face_size
        black = self.face_encoder.padding_tokens.new_full((1, 3, 1, size, size), -1.0)
        return self.motion(black).expand(-1, num_frames, -1)

    def face_tokens(self, motion: Tensor) -> Tensor:
        """[B, 1 + T, K, dim] for the motion vectors [B, F, motion_dim] of a clip with F = 4(T - 1) + 1 frames."""
        return with_reference_frame(self.face_encoder(motion))

    def forward(self, x: Tensor, t: Tensor, text: Tensor, channels: Tensor, pose: Tensor, image: Tensor, face: Tensor) -> Tensor:  # type: ignore[override]
        """The velocity [B, out_dim, 1 + T, 2(H//2), 2(W//2)] in float32; frame 0 is the reference picture's.

        `x` [B, C, 1 + T, H, W]: noisy latents; `t` as in `DiT.forward`; the rest as in `Inputs`.
        """
        grid = patch_grid(x, self.config.patch_size)
        x = self.add_pose(self.patch_embedding(self.join_channels(x, channels)), pose, grid)
        context = torch.cat([image.to(x.dtype), self.embed_text(text)], dim=1)
        x, shared = self.share(x, *self.embed_time(t), rope_table(grid, self.config.head_dim, device=x.device))
        for i, block in enumerate(self.blocks):
            x = block(x, shared.rows, context, shared.rope, num_tokens=shared.num_tokens)
            if i % self.config.face_every == 0:
                face_block: FaceBlock = self.face_adapter.fuser_blocks[i // self.config.face_every]  # type: ignore[assignment]
                x = x + face_block(x, self.tokens.shard(face_block.keys_values(face), shared.num_tokens))
        return unpatchify(self.predict(x, shared), grid, self.config.patch_size)

    def add_pose(self, x: Tensor, pose: Tensor, grid: dit.Grid) -> Tensor:
        """`x` [B, L, dim] with the patches of `pose` added to all frames but the first, the reference picture's."""
        if pose.shape[2] != grid[0] - 1:
            raise ValueError(f"the latents have {grid[0]} frames, so the pose must have {grid[0] - 1}; got {pose.shape[2]}")
        reference = x.shape[1] // grid[0]
        return torch.cat([x[:, :reference], x[:, reference:] + self.pose_patch_embedding(pose)], dim=1)


@torch.no_grad()
def init_weights(model: AnimateDiT, *, generator: torch.Generator | None = None) -> None:
    """Sets the weights for training from scratch: as `dit.init_weights`, and so that faces and image start without effect.

    face_adapter.*.linear2, cross_attn.v_img    zero
    face_encoder.padding_tokens                 normal, deviation 1/√dim
    motion_encoder                              as `motion_encoder.init_weights`
    """
    dit.init_weights(model, generator=generator)
    motion_encoder.init_weights(model.motion_encoder, generator=generator)
    for name, parameter in model.named_parameters():
        if name.startswith("face_encoder.conv") and name.endswith(".weight"):
            nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)
        elif name.endswith((".linear2.weight", ".v_img.weight")):
            nn.init.zeros_(parameter)
    nn.init.normal_(model.face_encoder.padding_tokens, std=model.config.dim**-0.5, generator=generator)
