"""Trains the nano speech-to-video transformer on drawn talkers, by flow matching on a pool of encoded clips.

Each sample has what the task gives at inference: a reference picture of the same person at another time, the latents of the
73 frames before (grey where the video had not begun, or the reference standing still), or none of these; the features that
the real speech encoder gives of the real sound, or zeros; a pose, or none. Targets are encoded as they are decoded:

    with motion     [73 frames, clip] as one video; the last T latents
    without         [reference, clip] as one video; all latents but the first

`tune_vae` first fits a VAE of the shared kind to talkers, where the shared one has not seen their colours.
"""
from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kinograph.config import S2V_NANO, ModelSpec, S2VConfig
from kinograph.models import dit_s2v
from kinograph.models.dit import CrossAttention
from kinograph.models.dit_s2v import Clip, S2VDiT
from kinograph.models.t5 import TextEncoder
from kinograph.models.tokenizer import Tokenizer
from kinograph.models.vae import VAE
from kinograph.models.wav2vec2 import Wav2Vec2
from kinograph.ops.attention import attention
from kinograph.runtime.kernels import set_attention
from kinograph.sampling.conditioning import Conditioning
from kinograph.sampling.denoise import ExpertRun, denoise
from kinograph.sampling.guidance import batched
from kinograph.sampling.schedule import NUM_TRAIN_TIMESTEPS, add_noise, sample_t
from kinograph.sampling.solvers import make_solver
from kinograph.tasks import s2v_clips
from kinograph.tasks.s2v_clips import DROPPED_FRAMES, MOTION_FRAMES, STILL_FRAMES
from kinograph.training import talkers, train_vae
from kinograph.training.latents import fold_latent_statistics
from kinograph.training.loss import psnr, reconstruction_loss, velocity_loss
from kinograph.training.optim import FlatParameters, Optimizer, OptimizerConfig, hidden_matrix
from kinograph.training.parts import load_parts, save_parts
from kinograph.training.sheets import contact_sheet
from kinograph.training.speech_sounds import babble, loudness, vowel_colour
from kinograph.training.talker_judge import agreement, identity_error, joint_error, mouth_opening
from kinograph.training.talkers import Person, sample_people
from kinograph.training.train_dit import DIT, on_device_already, precise, real_tokens, without_channels
from kinograph.training.trainer import Phase, TrainConfig, Trainer, compile_blocks

STEM = "s2v"
NEW_MOTION = (0.30, 0.25, 0.30, 0.15)  # shares of samples with motion: after 1 clip, after 2, after 3 or more, still reference
MAX_REFERENCE_OFFSET = 400  # frames between a clip and the picture of the same person


@dataclass(frozen=True, kw_only=True)
class S2VRecipe:
    """What to train, and on what."""

    spec: ModelSpec = S2V_NANO
    palette: str = "natural"
    motion_batch: int = 96
    first_batch: int = 32  # samples of a step that start a video
    num_clips: int = 8192
    first_share: float = 0.25  # of the pool
    pool_seconds: float = 90.0  # building the pool stops then, with fewer clips
    shift: float = 4.0  # of the training levels
    pose_share: float = 0.35
    sound_dropout: float = 0.1
    text_dropout: float = 0.3
    motion_noise: float = 0.25  # greatest deviation of what is added to the motion's latents, as these come from clips made before
    reference_noise: float = 0.05
    # Frames that the mouth is behind the sound features: as many as the first clip drops, so that video and sound that start
    # together are in sync.
    sound_delay: int = DROPPED_FRAMES
    babble_seconds: float = 200.0
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(kind="muon", lr=2e-3, muon_lr=0.02))
    num_eval: int = 8
    eval_clips: int = 2
    seed: int = 4

    @property
    def frames(self) -> int:
        return self.spec.num_frames

    @property
    def side(self) -> int:
        return self.spec.sizes[0][0]


# ------------------------------------------------------------------------------------------------------------- sound


@dataclass(frozen=True)
class Sound:
    """One piece of sound, per video frame: what is heard, and what the mouth does."""

    features: Tensor  # [S, C, n] as the transformer gets them
    opening: Tensor  # [n]
    width: Tensor  # [n]

    def __len__(self) -> int:
        return self.opening.shape[0]

    def heard(self, start: int, count: int) -> Tensor:
        """[S, C, count]: features of frames from `start` on; zeros after the sound."""
        part = self.features[..., start : start + count]
        return F.pad(part, (0, count - part.shape[-1]))

    def mouth(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Opening and width of frames from `start` on, which may lie before or after the sound: closed there."""
        before, after = max(0, -start), max(0, start + count - len(self))
        part = slice(max(0, start), max(0, start + count))
        opening = F.pad(self.opening[part], (before, after))[:count]
        return opening, F.pad(self.width[part], (before, after), value=0.5)[:count]


@torch.no_grad()
def hear(encoder: Wav2Vec2, wave: np.ndarray, *, extra: int = 0) -> Sound:
    """`wave` at 16 kHz through the real path: normalised, encoded, at 30 Hz, one feature per frame; `extra` frames after its end."""
    device = next(encoder.parameters()).device
    samples = torch.from_numpy(wave).to(device)
    hidden = encoder(samples[None])[0]
    count = -(-len(wave) * 16 // 16000) + extra
    features = s2v_clips.frame_features(s2v_clips.at_30_hz(hidden), count)[0]
    opening, width = (F.pad(values, (0, extra), value=rest) for values, rest in ((loudness(samples), 0.0), (vowel_colour(samples), 0.5)))
    return Sound(features, opening[:count], width[:count])


def sound_pieces(waves: Sequence[np.ndarray], recipe: S2VRecipe, encoder: Wav2Vec2) -> list[Sound]:
    """Training sounds: each wave whole, joined pairs, and babble; with noise at various levels."""
    rng = np.random.default_rng(recipe.seed)
    pieces = list(waves)
    for first in rng.permutation(len(waves)):
        pause = np.zeros(int(16000 * rng.uniform(0.1, 1.5)), dtype=np.float32)
        pieces.append(np.concatenate([waves[first], pause, waves[int(rng.integers(len(waves)))]]))
    seconds = 0.0
    while seconds < recipe.babble_seconds:
        length = rng.uniform(3, 9)
        pieces.append(babble(length, rng))
        seconds += length
    noisy = [wave + rng.normal(0, 10 ** rng.uniform(-4.5, -2.5), len(wave)).astype(np.float32) for wave in pieces]
    return [hear(encoder, wave.astype(np.float32), extra=recipe.frames) for wave in noisy]


# ------------------------------------------------------------------------------------------------------------- text


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


# -------------------------------------------------------------------------------------------------------------- pool


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
        result = {"motion": latents[:, :, :ahead], "clip": latents[:, :, ahead:], "reference": vae.encode(picture, whole=True)}
    else:
        latents = vae.encode(torch.cat([picture, video], dim=2), whole=True)
        result = {"clip": latents[:, :, 1:], "reference": latents[:, :, :1]}

    pose = torch.zeros_like(result["clip"])
    chosen = posed > 0.5
    if chosen.any():
        drawn = talkers.draw_pose(person[chosen], times[chosen, before:].float(), side=recipe.side)
        pose[chosen] = encoded_pose(vae, drawn)
    return {**result, "pose": pose, "sound": heard, "caption": person.hair}


def encoded_pose(vae: VAE, pose: Tensor) -> Tensor:
    """[B, z, T, h, w] for the pose video of a clip [B, 3, F, H, W]."""
    return vae.encode(s2v_clips.pose_clip(pose, 0, pose.shape[2]), whole=True)[:, :, 1:]


# ------------------------------------------------------------------------------------------------------------- a step


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
            reference=self._worn(pool.reference[rows], recipe.reference_noise, chance[2]),
            motion=None if pool.motion is None else self._worn(pool.motion[rows], recipe.motion_noise, chance[3]),
            pose=pool.pose[rows],
        )
        velocity = self.dit(add_noise(x0, noise, sigma), NUM_TRAIN_TIMESTEPS * sigma, **vars(self.dit.embed(clip)))
        return velocity_loss(velocity, x0, noise)

    @staticmethod
    def _worn(latents: Tensor, most: float, chance: Tensor) -> Tensor:
        """Noise of up to `most` on `latents`: at inference they are of frames that the model made."""
        latents = latents.float()
        return latents + torch.randn_like(latents) * (most * chance.square())[:, None, None, None, None]

    def averaged(self) -> S2VDiT:
        dit = S2VDiT(_sizes(self.recipe.spec))
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


# ----------------------------------------------------------------------------------------------------------- judging


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


# ------------------------------------------------------------------------------------------------------------ running


def _sizes(spec: ModelSpec) -> S2VConfig:
    assert isinstance(spec.dit, S2VConfig), f"{spec.name} does not speak"
    return spec.dit


def initial_state(recipe: S2VRecipe, base: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Fresh weights, under them those of an image-to-video transformer `base` for what both have; extra blocks are left out."""
    torch.manual_seed(recipe.seed)
    dit = S2VDiT(_sizes(recipe.spec))
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
    """The transformer with the weights `state` on the device of the pools, ready for `trainer_of`."""
    dit = S2VDiT(_sizes(recipe.spec))
    dit.load_state_dict(dict(state))
    dit.to(pools[0][0].clip.device)
    set_attention(dit, "sdpa")
    for injection in cast(Iterable[CrossAttention], dit.audio_injector.injector):
        injection.attend = partial(attention, implementation="sdpa")
    matrix = {"matrix": hidden_matrix} if recipe.optimizer.kind == "muon" else {}
    weights = FlatParameters({DIT: dit}, dtype=dtype, precise=_precise, **matrix)
    out.mkdir(parents=True, exist_ok=True)
    optimizer = Optimizer(weights, recipe.optimizer)
    return S2VTraining(recipe, dit, weights, optimizer, pools, texts, judged, dtype, out)


def _precise(name: str, parameter: Tensor) -> bool:
    return precise(name, parameter) or "casual_audio_encoder" in name or "trainable_cond_mask" in name


def trainer_of(training: S2VTraining, config: TrainConfig, *, compiled: bool) -> Trainer:
    return Trainer(
        training.weights,
        training.optimizer,
        [Phase(training.recipe.spec.name, training.loss)],
        config,
        compiled=compile_blocks(list(training.dit.blocks)) if compiled else None,
        on_evaluate=lambda trainer: training.evaluate(),
    )


def pools_of(recipe: S2VRecipe, vae: VAE, sounds: Sequence[Sound]) -> list[tuple[TalkerPool, int]]:
    """The clips with motion, and those without, each with its samples of a step."""
    first, seconds = round(recipe.num_clips * recipe.first_share), recipe.pool_seconds
    moving = build_pool(recipe, vae, sounds, has_motion=True, num_clips=recipe.num_clips - first, seconds=0.8 * seconds)
    starting = build_pool(recipe, vae, sounds, has_motion=False, num_clips=first, seconds=0.2 * seconds)
    return [(moving, recipe.motion_batch), (starting, recipe.first_batch)]


# ---------------------------------------------------------------------------------------------------------------- VAE


@dataclass
class VAETuning:
    """A VAE in training on talkers and pose videos; `loss` draws its own clips."""

    recipe: S2VRecipe
    vae: VAE
    weights: FlatParameters
    optimizer: Optimizer
    people: Person  # on the device
    batch: int
    frames: int = 9
    kl_weight: float = 3e-5

    def loss(self) -> Mapping[str, Tensor]:
        video, weight = self._batch()
        mean, log_variance = self.vae.encode_moments(video)
        log_variance = log_variance.clamp(-30, 20)
        decoded = self.vae.decode(mean + torch.randn_like(mean) * (0.5 * log_variance).exp(), whole=True, clamp=False)
        return reconstruction_loss(decoded, video, weight=weight, mean=mean, logvar=log_variance, kl_weight=self.kl_weight)

    @torch.no_grad()
    def _batch(self) -> tuple[Tensor, Tensor]:
        """Clips whose mouths jump at random, a few of them pose videos or after grey; the mouth and the eyes weigh more."""
        device = self.people.skin_rgb.device
        person = self.people[torch.randint(len(self.people), (self.batch,), device=device)]
        person = person.gesturing((torch.rand(self.batch, device=device) < 0.5).float())
        times = torch.rand(self.batch, 1, device=device) * 2000 + torch.arange(self.frames, device=device)
        opening = (torch.rand(self.batch, self.frames, device=device) * 1.6 - 0.4).clamp(0, 1)
        width = torch.rand(self.batch, self.frames, device=device)
        video = talkers.draw(person, times, opening, width, side=self.recipe.side)
        weight = torch.ones_like(video[:, :1])
        rows, columns = (slice(round(a * self.recipe.side), round(b * self.recipe.side)) for a, b in ((0.30, 0.62), (0.34, 0.66)))
        weight[..., rows, columns] = 4.0
        poses = self.batch // 8
        video[:poses] = talkers.draw_pose(person[:poses], times[:poses], side=self.recipe.side)
        weight[:poses] = 1.0
        cut = 1 + 4 * (self.frames // 8)
        video[-poses:, :, :cut] = 0.0  # a video that begins within the motion window
        weight[-poses:, :, :cut] = 1.0
        return video, weight

    def averaged(self) -> VAE:
        vae = VAE(self.recipe.spec.vae).to(self.weights.master.device)
        vae.load_state_dict(self.weights.of_module("vae", self.optimizer.state.ema))
        return vae.eval().requires_grad_(False)


@torch.no_grad()
def finish_vae(tuning: VAETuning, out: Path, *, dtype: torch.dtype) -> VAE:
    """The tuned VAE, its latent statistics folded in, saved as `vae.part*`, and loaded from there in `dtype`."""
    vae = tuning.averaged()
    totals: list[Tensor] = []
    for _ in range(8):
        mean, log_variance = vae.encode_moments(tuning._batch()[0])
        axes = (0, 2, 3, 4)
        totals.append(torch.stack([mean.mean(axes), mean.square().mean(axes), log_variance.exp().mean(axes)]))
    average, square, spread = torch.stack(totals).mean(0)
    fold_latent_statistics(vae, average, (square - average.square() + spread).clamp(min=1e-12).sqrt())
    save_parts(vae.state_dict(), out, train_vae.STEM, metadata={"version": vae.config.version})
    return train_vae.load_vae(out, vae.config, device=vae.conv1.weight.device, dtype=dtype)


def vae_tuning(recipe: S2VRecipe, state: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype, batch: int = 16) -> VAETuning:
    vae = VAE(recipe.spec.vae)
    vae.load_state_dict(dict(state))
    vae.to(device)
    weights = FlatParameters({"vae": vae}, dtype=dtype)
    optimizer = Optimizer(weights, OptimizerConfig(kind="adamw", lr=1.2e-3, betas=(0.9, 0.98)))
    people = sample_people(4096, recipe.seed + 9, palette=recipe.palette).to(device)
    return VAETuning(recipe, vae, weights, optimizer, people, batch)


def vae_trainer(tuning: VAETuning, config: TrainConfig) -> Trainer:
    return Trainer(tuning.weights, tuning.optimizer, [Phase("VAE on talkers", tuning.loss)], config)


@torch.no_grad()
def judge_vae(recipe: S2VRecipe, vae: VAE, sounds: Sequence[Sound], *, count: int = 8, frames: int = 49) -> str:
    """One line: what the judge sees in true clips of held-out people, and in what `vae` makes of them."""
    device = vae.conv1.weight.device
    person = sample_people(count, 999, palette=recipe.palette).gesturing(1.0).to(device)
    times = torch.arange(frames, device=device)[None].float()
    sounds = [sounds[i % len(sounds)] for i in range(count)]
    opening, width = (torch.stack(series) for series in zip(*(sound.mouth(0, frames) for sound in sounds)))
    video = talkers.draw(person, times, opening, width, side=recipe.side)
    picture = talkers.draw(person, times[:, :1] + 200, opening[:, :1] * 0, width[:, :1], side=recipe.side)
    decoded = torch.cat([vae.decode(vae.encode(clip, whole=True), whole=True) for clip in video.split(4)])
    places = talkers.joints(person, times.expand(count, -1))
    words = [f"PSNR {psnr(decoded, video).mean():.1f} dB"]
    for name, clips in (("true", video), ("decoded", decoded)):
        seen = [agreement(mouth_opening(clip), opening[i]) for i, clip in enumerate(clips)]
        colours = np.mean([max(identity_error(clip, picture[i]).values()) for i, clip in enumerate(clips)])
        distance = np.mean([joint_error(clip, picture[i], places[i]) for i, clip in enumerate(clips)])
        words.append(
            f"{name}: correlation {np.mean([a.correlation for a in seen]):.3f}, lag {np.mean([a.lag for a in seen]):+.2f}, "
            f"identity {100 * colours:.1f} %, joints {100 * distance:.1f} %"
        )
    return "eval vae: " + "; ".join(words)


def load_s2v(folder: str | Path) -> dict[str, Tensor]:
    """The transformer that a training left in `folder`."""
    tensors, _ = load_parts(folder, STEM)
    return {name.removeprefix(f"{DIT}."): tensor for name, tensor in tensors.items()}
