"""The clips that the speech-to-video model trains on, drawn and encoded on the training device, and their captions.

Targets are encoded as they are decoded:

    with motion     [73 frames, clip] as one video; the last T latents
    without         [reference, clip] as one video; all latents but the first
"""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kinograph.models.t5 import TextEncoder
from kinograph.models.tokenizer import Tokenizer
from kinograph.models.vae import VAE
from kinograph.tasks import s2v_clips
from kinograph.tasks.s2v_clips import DROPPED_FRAMES, MOTION_FRAMES, STILL_FRAMES
from kinograph.training import talkers
from kinograph.training.flow import real_tokens
from kinograph.training.s2v_recipe import S2VRecipe
from kinograph.training.s2v_sounds import Sound
from kinograph.training.talkers import Person, sample_people

NEW_MOTION = (0.30, 0.25, 0.30, 0.15)  # shares of samples with motion: after 1 clip, after 2, after 3 or more, still reference
MAX_REFERENCE_OFFSET = 400  # frames between a clip and the picture of the same person


@dataclass(frozen=True)
class Texts:
    """Embeddings of the captions, and last of the empty one: [n, text_len, dim]; zeros where no text encoder was given."""

    table: Tensor

    @classmethod
    @torch.no_grad()
    def encode(cls, recipe: S2VRecipe, state: Mapping[str, Tensor] | None, tokenizer: Tokenizer | None, device: torch.device) -> Texts:
        captions = [f"a person with {hair} hair speaks" for hair in talkers.HAIRS] + [""]
        text = recipe.spec.text
        if state is None or tokenizer is None:
            return cls(torch.zeros(len(captions), text.text_len, text.dim, device=device))
        encoder = TextEncoder(text)
        encoder.load_state_dict(state)
        ids, mask = tokenizer(captions)
        table = encoder.float().eval()(ids, real_tokens(mask.sum(1), ids.shape[1]))
        return cls(table.to(device).float())


def pools_of(recipe: S2VRecipe, vae: VAE, sounds: Sequence[Sound]) -> list[tuple[TalkerPool, int]]:
    """The clips with motion, and those without, each with its samples of a step."""
    first, seconds = round(recipe.num_clips * recipe.first_share), recipe.pool_seconds
    moving = build_pool(recipe, vae, sounds, has_motion=True, num_clips=recipe.num_clips - first, seconds=0.8 * seconds)
    starting = build_pool(recipe, vae, sounds, has_motion=False, num_clips=first, seconds=0.2 * seconds)
    return [(moving, recipe.motion_batch), (starting, recipe.first_batch)]


@dataclass(frozen=True, kw_only=True)
class TalkerPool:
    """Encoded clips on the training device; `motion` is None where they start a video."""

    clip: Tensor  # [n, z, T, h, w]
    reference: Tensor  # [n, z, 1, h, w]
    pose: Tensor  # [n, z, T, h, w]; zeros without
    sound: Tensor  # [n, S, C, F]
    caption: Tensor  # [n] rows of `Texts.table`
    motion: Tensor | None = None  # [n, z, 19, h, w]

    def __len__(self) -> int:
        return self.clip.shape[0]

    @property
    def num_bytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values() if value is not None)


@torch.no_grad()
def build_pool(recipe: S2VRecipe, vae: VAE, sounds: Sequence[Sound], *, has_motion: bool, num_clips: int, seconds: float) -> TalkerPool:
    """Draws and encodes up to `num_clips` clips on the device of `vae`, until `seconds` are over."""
    device = vae.conv1.weight.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rng = np.random.default_rng(recipe.seed + 17 * has_motion)
    people = sample_people(num_clips, recipe.seed + has_motion, palette=recipe.palette, gesture_rate=recipe.pose_share)
    batch, started = 16, time.monotonic()
    rows: list[dict[str, Tensor]] = []
    for start in range(0, num_clips, batch):
        if rows and time.monotonic() - started > seconds:
            break
        person = people[start : start + batch].to(device)
        encoded = _encoded(recipe, vae, person, sounds, rng, has_motion)
        rows.append({name: tensor if name == "caption" else tensor.to(dtype) for name, tensor in encoded.items()})
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return TalkerPool(**joined)


def _encoded(
    recipe: S2VRecipe, vae: VAE, person: Person, sounds: Sequence[Sound], rng: np.random.Generator, has_motion: bool
) -> dict[str, Tensor]:
    count, frames = len(person), recipe.frames
    device = person.skin_rgb.device
    before = MOTION_FRAMES if has_motion else 0
    picked = [sounds[i] for i in rng.integers(len(sounds), size=count)]
    starts = [int(rng.integers(0, max(1, len(sound) - frames))) if has_motion or rng.random() < 0.4 else 0 for sound in picked]
    mouths = [sound.mouth(start - before - recipe.sound_delay, before + frames) for sound, start in zip(picked, starts)]
    opening, width = (torch.stack(series) for series in zip(*mouths))
    heard = torch.stack([sound.heard(start, frames) for sound, start in zip(picked, starts)])

    first = torch.from_numpy(rng.integers(0, 2000, size=(count, 1))).to(device)
    times = first + torch.arange(-before, frames, device=device)[None]
    video = talkers.draw(person, times.float(), opening, width, side=recipe.side)
    away = first + torch.from_numpy(rng.integers(-MAX_REFERENCE_OFFSET, MAX_REFERENCE_OFFSET, size=(count, 1))).to(device)
    mouth = torch.from_numpy(rng.uniform(0, 1, size=(2, count, 1)).astype(np.float32)).to(device)
    said = (mouth[0] * 2 - 1).clamp(min=0)  # half of the pictures have the mouth closed
    hanging = torch.from_numpy((rng.random(count) < 0.4).astype(np.float32)).to(device)
    posed = person.gestures
    still_person = person.gesturing(posed * (1 - hanging))
    picture = talkers.draw(still_person, away.float(), said, mouth[1], side=recipe.side)

    if has_motion:
        reach = rng.choice(4, size=count, p=NEW_MOTION)
        for row, kind in enumerate(reach):  # what came before the video is grey
            if kind == 3:
                picture[row] = video[row, :, before : before + 1]
                video[row, :, : before - STILL_FRAMES] = 0
                video[row, :, before - STILL_FRAMES : before] = picture[row]
            elif kind < 2:
                video[row, :, : before - (kind + 1) * frames + DROPPED_FRAMES] = 0
        latents = vae.encode(video, whole=True)
        ahead = latents.shape[2] - frames // 4
        motion = latents[:, :, :ahead].clone()
        remade = torch.from_numpy(rng.random(count) < recipe.remade_share).to(device)
        if remade.any():
            motion[remade] = encoded_again(vae, video[remade, :, :before])
        result = {"motion": motion, "clip": latents[:, :, ahead:], "reference": vae.encode(picture, whole=True)}
    else:
        latents = vae.encode(torch.cat([picture, video], dim=2), whole=True)
        result = {"clip": latents[:, :, 1:], "reference": latents[:, :, :1]}

    pose = torch.zeros_like(result["clip"])
    chosen = posed > 0.5
    if chosen.any():
        drawn = talkers.draw_pose(person[chosen], times[chosen, before:].float(), side=recipe.side)
        pose[chosen] = encoded_pose(vae, drawn)
    return {**result, "pose": pose, "sound": heard, "caption": person.hair}


def encoded_again(vae: VAE, motion: Tensor) -> Tensor:
    """Latents of frames [B, 3, n, H, W] that have been through the VAE once; frames that are all grey stay what they are."""
    again = vae.decode(vae.encode(motion, whole=True), whole=True)
    grey = motion.abs().amax((1, 3, 4)) == 0
    return vae.encode(torch.where(grey[:, None, :, None, None], 0.0, again), whole=True)


def encoded_pose(vae: VAE, pose: Tensor) -> Tensor:
    """[B, z, T, h, w] for the pose video of a clip [B, 3, F, H, W]."""
    return vae.encode(s2v_clips.pose_clip(pose, 0, pose.shape[2]), whole=True)[:, :, 1:]
