"""Videos of held-out people and sounds, sampled clip after clip with the project's own sampler, and judged."""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kinograph.models.dit_s2v import Clip, S2VDiT
from kinograph.models.vae import VAE
from kinograph.sampling.conditioning import Conditioning
from kinograph.sampling.denoise import ExpertRun, denoise
from kinograph.sampling.guidance import batched
from kinograph.sampling.solvers import make_solver
from kinograph.tasks import s2v_clips
from kinograph.tasks.s2v_clips import DROPPED_FRAMES
from kinograph.training import talkers
from kinograph.training.flow import on_device_already
from kinograph.training.s2v_pool import Texts, encoded_pose
from kinograph.training.s2v_recipe import S2VRecipe
from kinograph.training.s2v_sounds import Sound
from kinograph.training.sheets import contact_sheet
from kinograph.training.talker_judge import agreement, identity_error, joint_error, mouth_opening
from kinograph.training.talkers import sample_people


@dataclass
class Judged:
    """Held-out people and sounds, sampled clip after clip with the project's own sampler, and judged."""

    recipe: S2VRecipe
    vae: VAE
    sounds: Sequence[Sound]

    @torch.no_grad()
    def evaluate(self, dit: S2VDiT, texts: Texts, *, sheet: Path) -> str:
        started, lines, shown, captions = time.monotonic(), [], [], []
        recipe = self.recipe
        wanted = recipe.eval_clips * recipe.frames
        for name, gestures in (("sound", 0.0), ("sound and pose", 1.0)):
            person = sample_people(recipe.num_eval, 12345, palette=recipe.palette).gesturing(gestures).to(self.vae.conv1.weight.device)
            times = torch.arange(wanted, device=person.skin_rgb.device)[None].float()
            closed = times.new_zeros(len(person), 1)
            picture = talkers.draw(person, times[:, :1] - 50, closed, closed + 0.5, side=recipe.side)
            sounds = [self.sounds[i % len(self.sounds)] for i in range(len(person))]
            pose = talkers.draw_pose(person, times, side=recipe.side) if gestures else None
            heard = torch.stack([sound.heard(0, wanted) for sound in sounds])
            videos = self.generate(dit, texts, picture, heard, pose)
            agreements, colours, distances = [], [], []
            places = talkers.joints(person, times.expand(len(person), -1))
            for row, video in enumerate(videos):
                envelope = sounds[row].mouth(DROPPED_FRAMES - recipe.sound_delay, video.shape[1])[0]
                agreements.append(agreement(mouth_opening(video), envelope))
                colours.append(max(identity_error(video[:, -recipe.frames :], picture[row]).values()))
                if gestures:
                    distances.append(joint_error(video, picture[row], places[row, DROPPED_FRAMES:]))
            mean = [float(np.mean([getattr(a, key) for a in agreements])) for key in ("correlation", "lag", "best")]
            line = f"eval {name}: correlation {mean[0]:.3f}, lag {mean[1]:+.2f} frames (there {mean[2]:.3f}), "
            line += f"identity {100 * np.mean(colours):.1f} % (worst {100 * max(colours):.1f})"
            lines.append(line + (f", joints {100 * np.mean(distances):.1f} % of height" if distances else "") + f" of {len(person)} videos")
            shown += list(videos[:4].float().cpu())
            captions += [f"{name}: {a}" for a in agreements[:4]]
        contact_sheet(shown, sheet, captions, columns=1)
        return "\n".join(lines) + f"\njudged in {time.monotonic() - started:.1f} s"

    def generate(self, dit: S2VDiT, texts: Texts, picture: Tensor, heard: Tensor, pose: Tensor | None) -> Tensor:
        """Videos [B, 3, n F - 3, H, W] of n clips, as the task makes them, for sound features [B, S, C, n F]."""
        spec, frames = self.recipe.spec, self.recipe.frames
        batch, device = len(picture), picture.device
        reference = self.vae.encode(picture, whole=True)
        buffer = s2v_clips.first_motion(picture, start_from_reference=False)
        empty = texts.table[-1:].expand(batch, -1, -1)
        run = ExpertRun(
            name="all_noise", t_min=0.0, guidance_scale=spec.experts[-1].guidance_scale, on_device=on_device_already(dit)
        )
        made = []
        for number in range(heard.shape[-1] // frames):
            part = slice(number * frames, (number + 1) * frames)
            motion = self.vae.encode(buffer, whole=True) if number else None
            clip = Clip(
                text=empty,
                audio=heard[..., part],
                reference=reference,
                motion=motion,
                pose=None if pose is None else encoded_pose(self.vae, pose[:, :, part]),
            )
            positive, negative = dit.embed_pair(clip, empty)
            generator = torch.Generator().manual_seed(100 + number)
            noise = torch.randn(batch, spec.vae.z_dim, frames // 4, *reference.shape[3:], generator=generator)
            solver = make_solver(spec.solver, num_steps=spec.num_steps, shift=spec.shift)
            latents = denoise([run], solver, noise.to(device), Conditioning(positive=positive, negative=negative), passes=batched)
            lead = reference if motion is None else motion
            decoded = self.vae.decode(torch.cat([lead, latents], dim=2), whole=True)
            made.append(decoded[:, :, -frames:] if number else decoded[:, :, -frames + DROPPED_FRAMES :])
            buffer = s2v_clips.next_motion(buffer, made[-1])
        return torch.cat(made, dim=2)
