"""The diffusion transformer of speech to video: `dit.DiT` with sound, a reference picture, the motion so far and a pose.

    tokens      noisy latents (+ pose) | reference | motion: newest frame, the 2 before, the 16 before those
    rope time   0 .. T−1               | 30        | −1, −3, −19 to −4
    timestep    t                      | 0         | 0

- every token attends to every other and to the text; the velocity is read from the noisy tokens alone
- motion is packed coarser the older it is: patches of (1,2,2), (2,4,4), (4,8,8), whose coarse rows and columns are
  stretched over the fine ones
- after some blocks each noisy frame attends to its own few audio tokens, behind a norm that the sound modulates
- a learned row tells the three kinds of token apart

What does not depend on the timestep is made once per clip by `S2VDiT.embed` and passed to every forward pass as `Inputs`.
The precision, the axes and the seams are those of `dit`; `audio_injector.injector[k].attend` is one more.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinograph.config import S2VConfig
from kinograph.models import dit
from kinograph.models.audio_encoder import CausalAudioEncoder
from kinograph.models.dit import CrossAttention, Grid, PatchEmbedding, patch_grid, unpatchify
from kinograph.ops.modulate import modulated_norm
from kinograph.ops.norm import layer_norm
from kinograph.ops.rope import rope_table

REFERENCE_TIME = 30  # position on the time axis, beyond every frame of a clip
NOISY, REFERENCE, MOTION = range(3)  # rows of trainable_cond_mask
ADAPTIVE_EPS, PLAIN_EPS = 1e-5, 1e-6  # of the norm before an injection: the published code uses both


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What one clip is conditioned on; `S2VDiT.embed` makes `Inputs` of it."""

    text: Tensor  # [B, M, text_dim], zero-padded to text_len rows
    audio: Tensor  # [B, S, audio_dim, 4T]: the speech encoder's hidden states, one feature per video frame
    reference: Tensor  # [B, C, 1, H, W] latents
    motion: Tensor | None = None  # [B, C, n, H, W] latents of the n newest frames before the clip; None: nothing came before
    pose: Tensor | None = None  # [B, cond_dim, T, H, W] latents


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything `S2VDiT.forward` takes after `t`, embedded: call `dit(x, t, **vars(inputs))`."""

    text: Tensor  # [B, M, dim]
    audio: Tensor  # [B, T, A + 1, dim] float32
    audio_global: Tensor | None  # [B, T, dim] float32; None for a model without adaptive norm
    pose: Tensor  # [B, L, dim], or [B, 1, dim] without a pose: added to the noisy tokens
    reference: Tensor  # [B, tokens of a frame, dim] float32
    motion: Tensor | None  # [B, tokens, dim] float32


# -------------------------------------------------------------------------------------------------------- layers


class FramePacker(nn.Module):
    """Motion latents to tokens: the newest frame in full, the 2 before it at half and the 16 before those at a quarter size."""

    SPANS = (16, 2, 1)  # latent frames at a quarter, a half and the full size, in order of time

    def __init__(self, config: S2VConfig) -> None:
        super().__init__()
        self.proj = PatchEmbedding(config.in_dim, config.dim, (1, 2, 2))
        self.proj_2x = PatchEmbedding(config.in_dim, config.dim, (2, 4, 4))
        self.proj_4x = PatchEmbedding(config.in_dim, config.dim, (4, 8, 8))

    def forward(self, motion: Tensor) -> Tensor:
        """Tokens [B, L, dim], full size first, for the newest 19 frames of `motion` [B, C, n, H, W]; missing ones are 0."""
        frames = sum(self.SPANS)
        motion = F.pad(motion[:, :, -frames:], (0, 0, 0, 0, max(0, frames - motion.shape[2]), 0))
        oldest, middle, newest = motion.split(self.SPANS, dim=2)
        return torch.cat([self.proj(newest), self.proj_2x(middle), self.proj_4x(oldest)], dim=1)


class AdaptiveNorm(nn.Module):
    """A layer norm whose shift and scale come from the sound."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, sound: Tensor) -> Tensor:
        """float32 [B, L, dim] for `x` [B, L, dim]; row r of `sound` [B, T, dim], activated, serves the r-th of T equal parts."""
        shift, scale = self.linear(sound).float().chunk(2, dim=-1)
        return modulated_norm(x, shift, scale, eps=ADAPTIVE_EPS)


class AudioInjector(nn.Module):
    """One cross-attention, and the norm before it, for each block that sound is injected after."""

    def __init__(self, config: S2VConfig) -> None:
        super().__init__()
        layers = config.audio_inject_layers
        self.place = {layer: k for k, layer in enumerate(layers)}
        self.injector = nn.ModuleList(CrossAttention(config.dim, config.num_heads, eps=config.eps) for _ in layers)
        if config.enable_adain:
            self.injector_adain_layers = nn.ModuleList(AdaptiveNorm(config.dim) for _ in layers)

    def forward(self, k: int, x: Tensor, audio: Tensor, audio_global: Tensor | None) -> Tensor:
        """[B, L, dim], what the k-th injection adds to the noisy tokens `x` [B, L, dim] of T equal frames.

        `audio` [B, T, A, dim]: each frame attends to its own row. `audio_global` [B, T, dim], or None for a plain norm.
        """
        attention: Any = self.injector[k]
        dtype = attention.norm_q.weight.dtype  # not a linear's: those may be stored in 8 bits
        sound = None if audio_global is None else F.silu(audio_global).to(dtype)
        normed = layer_norm(x, eps=PLAIN_EPS) if sound is None else self.injector_adain_layers[k](x, sound)
        by_frame = normed.to(dtype).unflatten(1, (audio.shape[1], -1)).flatten(0, 1)  # [B·T, L/T, dim]
        return attention(by_frame, audio.to(dtype).flatten(0, 1)).view(x.shape)


# --------------------------------------------------------------------------------------------------------- model


class S2VDiT(dit.DiT):
    """The diffusion transformer of speech to video, with the published parameter names."""

    config: S2VConfig

    def __init__(self, config: S2VConfig) -> None:
        super().__init__(config)
        self.casual_audio_encoder = CausalAudioEncoder(config)
        self.audio_injector = AudioInjector(config)
        self.cond_encoder = PatchEmbedding(config.cond_dim, config.dim, config.patch_size)
        self.frame_packer = FramePacker(config)
        self.trainable_cond_mask = nn.Embedding(3, config.dim)

    # -- once per clip

    def embed(self, clip: Clip) -> Inputs:
        """What `forward` takes for `clip`. Differentiable. Raises ValueError if the parts are not of one length and size."""
        _check(clip)
        audio, audio_global = self.casual_audio_encoder.for_clip(clip.audio)
        return Inputs(
            text=self.embed_text(clip.text),
            audio=audio,
            audio_global=audio_global,
            pose=self.embed_pose(clip),
            reference=self.patch_embedding(clip.reference).float() + self.kind(REFERENCE),
            motion=None if clip.motion is None else self.frame_packer(clip.motion).float() + self.kind(MOTION),
        )

    def embed_pair(self, clip: Clip, negative_text: Tensor) -> tuple[Inputs, Inputs]:
        """`embed(clip)` and what guidance leads away from: the negative prompt and features of 0; all else is shared."""
        positive = self.embed(clip)
        audio, audio_global = self.casual_audio_encoder.for_clip(torch.zeros_like(clip.audio))
        return positive, replace(positive, text=self.embed_text(negative_text), audio=audio, audio_global=audio_global)

    def embed_pose(self, clip: Clip) -> Tensor:
        """[B, L, dim] for the clip's pose; [B, 1, dim] without one, which counts as latents of 0."""
        if clip.pose is None:
            return self.cond_encoder(clip.reference.new_zeros(len(clip.reference), self.config.cond_dim, *self.config.patch_size))
        return self.cond_encoder(clip.pose)

    def kind(self, row: int) -> Tensor:
        """[dim] float32: what tells NOISY, REFERENCE and MOTION tokens apart."""
        return self.trainable_cond_mask.weight[row].float()

    # -- once per step

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        audio: Tensor,
        audio_global: Tensor | None,
        pose: Tensor,
        reference: Tensor,
        motion: Tensor | None = None,
    ) -> Tensor:
        """The velocity [B, out_dim, T, 2(H//2), 2(W//2)] in float32, of the noisy latents `x` [B, C, T, H, W].

        `t`, in 0..1000: [B], or [B, R] for R equal, consecutive groups of the noisy tokens. The rest: the fields of `Inputs`.
        """
        grid = patch_grid(x, self.config.patch_size)
        if audio.shape[1] != grid[0]:
            raise ValueError(f"the sound is for {audio.shape[1]} latent frames, but x has {grid[0]}")
        noisy = self.patch_embedding(x).float() + pose + self.kind(NOISY)
        num_noisy = noisy.shape[1]
        clean = reference if motion is None else torch.cat([reference, motion], dim=1)
        rows, embedding = self.embed_times(t, num_noisy, clean.shape[1])
        rope = sequence_rope(grid, self.config.head_dim, has_motion=motion is not None, device=x.device)

        x, shared = self.share(torch.cat([noisy, clean], dim=1), rows, embedding, rope)
        for i, block in enumerate(self.blocks):
            x = block(x, shared.rows, text, shared.rope, num_tokens=shared.num_tokens)
            if i in self.audio_injector.place:
                whole = self.tokens.gather(x, shared.num_tokens)  # frames do not begin where shares do
                x = self.tokens.shard(self.inject(i, whole, num_noisy, audio, audio_global), shared.num_tokens)
        return unpatchify(self.predict(x, shared)[:, :num_noisy], grid, self.config.patch_size)

    def embed_times(self, t: Tensor, num_noisy: int, num_clean: int) -> tuple[Tensor, Tensor]:
        """As `embed_time`: of `t` for the noisy tokens, of 0 for the others.

        R is the least number of equal groups of tokens of which each is wholly noisy or wholly clean: 2T + 5 with motion.
        """
        t = t.reshape(t.shape[0], -1)
        unit = math.gcd(num_noisy // t.shape[1], num_clean)
        counts = (num_noisy // t.shape[1] // unit, num_clean // unit)

        def spread(of_t: Tensor, of_0: Tensor) -> Tensor:
            return torch.cat([of_t.repeat_interleave(counts[0], dim=1), of_0.repeat_interleave(counts[1], dim=1)], dim=1)

        rows, embedding = self.embed_time(torch.cat([t, torch.zeros_like(t[:, :1])], dim=1))
        return spread(rows[:, :-1], rows[:, -1:]), spread(embedding[:, :-1], embedding[:, -1:])

    def inject(self, layer: int, x: Tensor, num_noisy: int, audio: Tensor, audio_global: Tensor | None) -> Tensor:
        """`x` [B, L, dim] with the sound added to its noisy tokens after block `layer`."""
        noisy = x[:, :num_noisy]
        heard = self.audio_injector(self.audio_injector.place[layer], noisy, audio, audio_global)
        return torch.cat([noisy + heard, x[:, num_noisy:]], dim=1)


def _check(clip: Clip) -> None:
    frames, size = clip.audio.shape[-1], clip.reference.shape[-2:]
    if frames % 4:
        raise ValueError(f"a clip's number of frames must be a multiple of 4; its sound has {frames}")
    for name, latents in (("motion", clip.motion), ("pose", clip.pose)):
        if latents is not None and latents.shape[-2:] != size:
            raise ValueError(f"{name} latents must be of the reference's size {list(size)}; got {list(latents.shape[-2:])}")
    if clip.pose is not None and clip.pose.shape[2] * 4 != frames:
        raise ValueError(f"the pose has {clip.pose.shape[2]} latent frames, but the sound is for {frames // 4}")


# --------------------------------------------------------------------------------------------------------- rope


def sequence_rope(grid: Grid, head_dim: int, *, has_motion: bool, device: torch.device | str | None = None) -> Tensor:
    """[L, D/2] complex64: the turns of the noisy tokens of `grid` (T, H, W), the reference's and the motion's."""
    _, rows, columns = grid
    parts = [
        rope_table(grid, head_dim, device=device),
        rope_table((1, rows, columns), head_dim, device=device, offset=(REFERENCE_TIME, 0, 0)),
    ]
    if has_motion:
        parts.append(motion_rope((rows, columns), head_dim, device=device))
    return torch.cat(parts)


def motion_rope(size: tuple[int, int], head_dim: int, *, device: torch.device | str | None = None) -> Tensor:
    """[L, D/2] complex64: the turns of the motion tokens, in the order of `FramePacker`, where a frame has `size` (H, W) tokens."""
    rows, columns = size
    newest = rope_table((1, rows, columns), head_dim, device=device, offset=(-1, 0, 0))
    middle = rope_table((1, rows, columns), head_dim, device=device, offset=(-3, 0, 0))
    oldest = rope_table((16, rows, columns), head_dim, device=device, offset=(-19, 0, 0)).unflatten(0, (16, -1))[::5].flatten(0, 1)
    return torch.cat([newest, _coarser(middle, size, 2), _coarser(oldest, size, 4)])


def _coarser(table: Tensor, size: tuple[int, int], factor: int) -> Tensor:
    """Rows and columns of `table` [T·H·W, D/2] for a grid `factor` times coarser, stretched over the fine one's range."""
    rows, columns = (_stretched(fine, fine // factor, device=table.device) for fine in size)
    return table.unflatten(0, (-1, *size))[:, rows][:, :, columns].flatten(0, 2)


def _stretched(fine: int, count: int, *, device: torch.device) -> Tensor:
    """[count] int64: the floor of `count` evenly spaced positions from 0 to fine − 1."""
    return torch.arange(count, device=device) * (fine - 1) // max(1, count - 1)


# ------------------------------------------------------------------------------------------------ initialisation


@torch.no_grad()
def init_weights(model: S2VDiT, *, generator: torch.Generator | None = None) -> None:
    """Sets the weights for training from scratch: the base as in `dit.init_weights`, and what joins it so that it adds nothing.

    audio encoder's convolutions    Xavier uniform; biases zero; padding token zero; equal layer weights
    frame packer                    Xavier uniform
    injections' output, pose, kind of token, shift and scale of the sound    zero
    """
    dit.init_weights(model, generator=generator)
    encoder = model.casual_audio_encoder
    for module in encoder.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.xavier_uniform_(module.weight, generator=generator)
    nn.init.constant_(encoder.weights, 0.01)
    for parameter in (encoder.encoder.padding_tokens, model.cond_encoder.weight, model.trainable_cond_mask.weight):
        nn.init.zeros_(parameter)
    for module in model.audio_injector.modules():
        if isinstance(module, CrossAttention):
            nn.init.zeros_(module.o.weight)
        elif isinstance(module, AdaptiveNorm):
            nn.init.zeros_(module.linear.weight)
