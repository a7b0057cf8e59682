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
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from kinograph.config import AnimateConfig, ModelSpec
from kinograph.models import dit_animate, motion_encoder
from kinograph.models.dit_animate import AnimateDiT, CrossAttention, Inputs
from kinograph.models.image_encoder import ImageEncoder, normalised
from kinograph.models.motion_encoder import MotionEncoder
from kinograph.models.vae import VAE
from kinograph.runtime.kernels import set_attention
from kinograph.sampling.conditioning import Conditioning
from kinograph.sampling.denoise import ExpertRun, denoise
from kinograph.sampling.schedule import NUM_TRAIN_TIMESTEPS, add_noise, sample_t
from kinograph.sampling.solvers import make_solver
from kinograph.training import dancers
from kinograph.training.dance_judge import judge_dance, mean_colour, seam
from kinograph.training.dancers import Character, Dance, PoseDrawing, Stage
from kinograph.training.loss import velocity_loss
from kinograph.training.low_rank import adapt, adapter_tensors, save_adapter
from kinograph.training.optim import FlatParameters, Optimizer, OptimizerConfig, hidden_matrix
from kinograph.training.parts import load_parts, save_parts
from kinograph.training.sheets import contact_sheet
from kinograph.training.train_dit import DIT, TEXT, on_device_already, precise
from kinograph.training.trainer import Phase, TrainConfig, Trainer, compile_blocks

STEM = "animate"
IMAGE, LORA = "image_encoder", "lora"
LORA_FOLDER = "relighting_lora"
GUIDANCE = (0, 1, 5)  # frames of the clip before that a clip may be given
FORMS = (0.4, 0.45, 0.15)  # shares of samples with so many
PART_BYTES = 14 * 2**20
MASK_MARGIN = 5.0  # pixels that a mask is wider than the person


@dataclass(frozen=True, kw_only=True)
class AnimateRecipe:
    """What to train, and on what. `spec.num_frames` and `spec.sizes[0]` give the clips."""

    spec: ModelSpec
    batch: int = 128
    num_clips: int = 8192
    shift: float = 3.0  # of the training levels
    replace_share: float = 0.5
    relight: bool = False  # train the LoRA: replacement alone, the character lit
    rank: int = 8  # with 16 the member would exceed its share of the package
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(kind="muon", lr=2e-3, muon_lr=0.02))
    num_eval: int = 8  # characters, each in both modes
    eval_seed: int = 7
    seed: int = 3

    @property
    def config(self) -> AnimateConfig:
        assert isinstance(self.spec.dit, AnimateConfig)
        return self.spec.dit

    @property
    def side(self) -> int:
        return self.spec.sizes[0][0]


# ----------------------------------------------------------------------------------------------------------- material


@dataclass(frozen=True, kw_only=True)
class Material:
    """What clips are drawn from; every field has the batch first."""

    character: Character
    driver: Character  # of another build, whom the mask covers
    dance: Dance
    stage: Stage  # of the result
    posing: Dance  # how the character stands in the reference picture
    posing_stage: Stage
    replaces: Tensor  # [B] bool: replacement; else animation, whose stage is the reference picture's
    rectangle: Tensor  # [B] bool: the mask is a rectangle
    coarse: Tensor  # [B] bool: the control pictures have gone through an ordinary video file

    def __len__(self) -> int:
        return len(self.replaces)

    def __getitem__(self, rows: slice) -> Material:
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to(self, device: torch.device | str) -> Material:
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def background(self, *, side: int) -> Tensor:
        """[B, 3, side, side] in [0, 1]: of the result."""
        own, other = dancers.draw_stage(self.stage, side=side), dancers.draw_stage(self.posing_stage, side=side)
        return torch.where(self.replaces[:, None, None, None], own, other)

    def joints(self, times: Tensor, *, side: int) -> Tensor:
        return dancers.joints(self.character, self.dance, times, side=side)

    def clip(self, times: Tensor, *, side: int, lit: bool = False) -> Tensor:
        """The true result [B, 3, T, side, side] in [-1, 1]."""
        light = self.stage.light if lit else None
        body, expression = self.joints(times, side=side), dancers.expressions(self.dance, times)
        return dancers.draw_character(self.character, body, expression, self.background(side=side), light=light)

    def reference(self, *, side: int) -> Tensor:
        """[B, 3, side, side] in [-1, 1]."""
        still = torch.zeros(1, device=self.replaces.device)
        body = dancers.joints(self.character, self.posing, still, side=side)
        stage = dancers.draw_stage(self.posing_stage, side=side)
        return dancers.draw_character(self.character, body, dancers.expressions(self.posing, still), stage)[:, :, 0]

    def mask(self, times: Tensor, *, side: int) -> Tensor:
        """[B, T, side, side] of 0 and 1: the driving person, widened."""
        body = self.joints(times, side=side)
        margin = MASK_MARGIN * side / dancers.UNIT
        tight, box = (dancers.person_mask(self.driver, body, side=side, margin=margin, rectangle=r) for r in (False, True))
        return torch.where(self.rectangle[:, None, None, None], box, tight)

    def holed(self, mask: Tensor) -> Tensor:
        """[B, 3, T, side, side] in [-1, 1]: the given background, black under `mask`; grey for animation."""
        background = self.background(side=mask.shape[-1])[:, :, None] * (1 - mask[:, None])
        return (background * 2 - 1) * self.replaces[:, None, None, None, None]

    def poses(self, drawing: PoseDrawing, times: Tensor) -> Tensor:
        """[B, 3, T, side, side] in [-1, 1]: the control pictures."""
        pictures = drawing(self.joints(times, side=drawing.side)).float() / 127.5 - 1
        return torch.where(self.coarse[:, None, None, None, None], dancers.with_coarse_colour(pictures), pictures)

    def faces(self, times: Tensor, *, size: int) -> Tensor:
        return dancers.draw_faces(self.driver.colours[:, dancers.SKIN], dancers.expressions(self.dance, times), size=size)


def sample_material(n: int, seed: int, *, split: str = "train", replace_share: float = 0.5) -> Material:
    """`n` clips on the CPU, the same for the same seed. "held_out" has pairs of movements that "train" never has."""
    generator = torch.Generator().manual_seed(seed)
    return Material(
        character=dancers.sample_characters(n, generator),
        driver=dancers.sample_characters(n, generator),
        dance=dancers.sample_dances(n, generator, split=split),
        stage=dancers.sample_stages(n, generator),
        posing=dancers.sample_dances(n, generator, split=split),
        posing_stage=dancers.sample_stages(n, generator),
        replaces=torch.rand(n, generator=generator) < replace_share,
        rectangle=torch.rand(n, generator=generator) < 0.5,
        coarse=torch.rand(n, generator=generator) < 0.5,
    )


def folded_mask(mask: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[B, time stride, T, h, w] for [B, frames, H, W]: as `tasks.animate_clips.mask_channels` folds it."""
    time, rows, columns = stride
    cells = mask[:, :, ::rows, ::columns]
    return torch.cat([cells[:, :1].expand(-1, time, -1, -1), cells[:, 1:]], dim=1).unflatten(1, (-1, time)).transpose(1, 2)


def with_guidance(mask: Tensor, frames: int) -> Tensor:
    """The mask channels [B, 4, T, h, w] with the first `frames` frames given."""
    given = -(-(frames + 3) // 4) if frames else 0
    return torch.cat([torch.ones_like(mask[:, :, :given]), mask[:, :, given:]], dim=2)


# ---------------------------------------------------------------------------------------------------------------- pool


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


def joined_channels(reference: Tensor, mask: Tensor, given: Tensor) -> Tensor:
    """[B, 4 + z, 1 + T, h, w] from latents of the reference picture [B, z, 1, h, w], the clip's mask and given latents."""
    first = torch.cat([torch.ones_like(reference[:, :1]).expand(-1, mask.shape[1], -1, -1, -1), reference], dim=1)
    return torch.cat([first, torch.cat([mask, given], dim=1)], dim=2)


# ------------------------------------------------------------------------------------------------------------ sampling


@torch.no_grad()
def sampled(
    recipe: AnimateRecipe, dit: AnimateDiT, image_encoder: ImageEncoder, vae: VAE, text: Tensor, material: Material, *, clips: int = 2
) -> Tensor:
    """[B, 3, frames, H, W]: `clips` chained clips, each given one frame of the one before; `material` on the device."""
    spec, side, length = recipe.spec, recipe.side, recipe.spec.num_frames
    device, batch = text.device, len(material)
    generator = torch.Generator().manual_seed(recipe.eval_seed)
    drawing = PoseDrawing(side, device)
    reference = material.reference(side=side)
    latents = vae.encode(reference[:, :, None], whole=True).float()
    image = dit.image_tokens(image_encoder.visual(picture_of(reference, spec)))
    videos: list[Tensor] = []
    for clip in range(clips):
        times = torch.arange(length, device=device) + clip * (length - 1)
        overlap = 1 if clip else 0
        mask = material.mask(times, side=side)
        given = material.holed(mask)
        if overlap:
            given = torch.cat([videos[-1][:, :, -overlap:].to(given), given[:, :, overlap:]], dim=2)
        channels = folded_mask(1 - mask, spec.vae.stride) * material.replaces[:, None, None, None, None]
        channels = joined_channels(latents, with_guidance(channels, overlap), vae.encode(given, whole=True).float())
        inputs = Inputs(
            text=text.expand(batch, -1, -1),
            channels=channels,
            pose=vae.encode(material.poses(drawing, times), whole=True).to(text.dtype),
            image=image,
            face=dit.face_tokens(dit.motion(material.faces(times, size=recipe.config.face_size))),
        )
        solver = make_solver(spec.solver, num_steps=spec.num_steps, shift=spec.shift)
        noise = torch.randn(batch, spec.vae.z_dim, *channels.shape[2:], generator=generator).to(device)
        runs = [ExpertRun(name="all_noise", t_min=0.0, guidance_scale=1.0, on_device=on_device_already(dit))]
        result = denoise(runs, solver, noise, Conditioning(positive=inputs))
        videos.append(torch.cat([vae.decode(part, whole=True) for part in result[:, :, 1:].split(8)]))
    return torch.cat([videos[0], *(video[:, :, 1:] for video in videos[1:])], dim=2).float()


def judged(
    recipe: AnimateRecipe, dit: AnimateDiT, image_encoder: ImageEncoder, vae: VAE, text: Tensor, *, sheet: Path, clips: int = 2
) -> str:
    """What the judge sees in chained clips of held-out dances, as lines; a contact sheet goes to `sheet`."""
    started = time.monotonic()
    frames = 1 + clips * (recipe.spec.num_frames - 1)
    lines, shown, captions = [], [], []
    for mode, share in (("animation", 0.0), ("replacement", 1.0)):
        if recipe.relight and not share:
            continue
        material = sample_material(recipe.num_eval, recipe.eval_seed, split="held_out", replace_share=share).to(text.device)
        video = sampled(recipe, dit, image_encoder, vae, text, material, clips=clips)
        lines += verdicts(video, material, recipe, mode, torch.arange(frames, device=text.device))
        true = material.clip(torch.arange(frames, device=text.device), side=recipe.side, lit=recipe.relight)
        shown += [item for pair in zip(true[:6], video[:6]) for item in pair]
        captions += [f"{mode}: {what}" for _ in range(min(6, len(video))) for what in ("true", "generated")]
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([item.cpu() for item in shown], sheet, captions, frames=6, columns=2)
    return "\n".join([*lines, f"judged in {time.monotonic() - started:.1f} s"])


def verdicts(video: Tensor, material: Material, recipe: AnimateRecipe, mode: str, times: Tensor) -> list[str]:
    """Lines with the means over `video` [B, 3, frames, H, W]."""
    side = recipe.side
    body, mask = material.joints(times, side=side).cpu(), material.mask(times, side=side)
    background = (material.background(side=side) * 2 - 1)[:, :, None].expand_as(video)
    found = [
        judge_dance(
            video[i].cpu(),
            material.character.colours[i].cpu(),
            body[i],
            background=background[i].cpu() if mode == "replacement" else None,
            mask=mask[i].cpu(),
        )
        for i in range(len(video))
    ]
    joins = [seam(clip.cpu(), join) for clip in video for join in range(recipe.spec.num_frames, len(times), recipe.spec.num_frames - 1)]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    line = (
        f"eval {mode}: joints {100 * mean([v.joint_error for v in found]):.2f} % of the height "
        f"({100 * mean([v.joints_missing for v in found]):.1f} % missing), colours {100 * mean([v.colour_error for v in found]):.2f} %"
    )
    if mode == "replacement":
        line += f", background {min(v.background_db or 0.0 for v in found):.1f} dB at worst"
    line += f", seam {max(joins):.2f} at worst, {mean(joins):.2f} on average" if joins else ""
    return [line, *(_light_lines(video, material, recipe, times) if mode == "replacement" else [])]


def _light_lines(video: Tensor, material: Material, recipe: AnimateRecipe, times: Tensor) -> list[str]:
    """How far the mean colour of the characters lies from unlit to fully lit, on coloured scenes."""
    side = recipe.side
    person = dancers.person_mask(material.character, material.joints(times, side=side), side=side)
    plain, lit = (material.clip(times, side=side, lit=on) for on in (False, True))
    shares = []
    for i in range(len(video)):
        a, b, seen = (mean_colour(item[i], person[i]) for item in (plain, lit, video))
        if float((b - a).norm()) > 0.03:
            shares.append(float((seen - a) @ (b - a) / (b - a).square().sum()))
    if not shares:
        return []
    mean = sum(shares) / len(shares)
    return [f"eval light: {100 * mean:.0f} % of the way to the lit colours on average of {len(shares)}, {100 * min(shares):.0f} % at least"]


# ------------------------------------------------------------------------------------------------------------- running


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
    """The models of `recipe` on the device of `vae`, ready for `trainer_of`.

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
        trained, options = {LORA: changes}, {}
    else:
        normalise_pose(dit, pool.pose)
        trained = {DIT: dit, IMAGE: image_encoder}
        options = {"matrix": hidden_matrix} if recipe.optimizer.kind == "muon" else {}
    weights = FlatParameters(trained, dtype=dtype, precise=precise, **options)
    out.mkdir(parents=True, exist_ok=True)
    return AnimateTraining(
        recipe=recipe,
        dit=dit,
        image_encoder=image_encoder,
        motion=motion,
        text=text.to(device, dtype),
        text_encoder=initial.get(TEXT, {}),
        weights=weights,
        optimizer=Optimizer(weights, recipe.optimizer),
        pool=pool,
        vae=vae,
        dtype=dtype,
        out=out,
        changes=changes,
    )


def trainer_of(training: AnimateTraining, config: TrainConfig, *, compiled: bool) -> Trainer:
    kind = "relighting" if training.changes is not None else "dances"
    return Trainer(
        training.weights,
        training.optimizer,
        [Phase(f"{training.recipe.spec.name}, {kind}", training.loss)],
        config,
        compiled=compile_blocks(list(training.dit.blocks)) if compiled else None,
        on_evaluate=lambda trainer: training.evaluate(),
    )


def load_animate(folder: str | Path) -> dict[str, dict[str, Tensor]]:
    """State dicts by module that a training left in `folder`."""
    tensors, _ = load_parts(folder, STEM)
    return {key: {n[len(key) + 1 :]: t for n, t in tensors.items() if n.startswith(f"{key}.")} for key in (DIT, IMAGE, TEXT)}
