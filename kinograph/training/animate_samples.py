"""Chained clips of held-out dances, sampled with the project's own sampler, and what the judge sees in them."""
from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from kinograph.models.dit_animate import AnimateDiT, Inputs
from kinograph.models.image_encoder import ImageEncoder
from kinograph.models.vae import VAE
from kinograph.preprocess.animate import keypoints as kp
from kinograph.sampling.conditioning import Conditioning
from kinograph.sampling.denoise import ExpertRun, denoise
from kinograph.sampling.solvers import make_solver
from kinograph.training import dancers
from kinograph.training.animate_material import Material, folded_mask, joined_channels, sample_material, with_guidance
from kinograph.training.animate_pool import picture_of
from kinograph.training.animate_recipe import AnimateRecipe
from kinograph.training.dance_judge import judge_dance, mean_colour, mouth_opening, seam
from kinograph.training.dancers import PoseDrawing
from kinograph.training.flow import on_device_already
from kinograph.training.sheets import contact_sheet
from kinograph.training.talker_judge import correlation


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
        lines += verdicts(video, material, recipe, mode, torch.arange(frames, device=text.device), lit=recipe.relight)
        true = material.clip(torch.arange(frames, device=text.device), side=recipe.side, lit=recipe.relight)
        shown += [item for pair in zip(true[:6], video[:6]) for item in pair]
        captions += [f"{mode}: {what}" for _ in range(min(6, len(video))) for what in ("true", "generated")]
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([item.cpu() for item in shown], sheet, captions, frames=6, columns=2)
    return "\n".join([*lines, f"judged in {time.monotonic() - started:.1f} s"])


def verdicts(video: Tensor, material: Material, recipe: AnimateRecipe, mode: str, times: Tensor, *, lit: bool) -> list[str]:
    """Lines with the means over `video` [B, 3, frames, H, W]; limbs are found by their colours, `lit` by the scene or not."""
    side = recipe.side
    colours = material.character.colours
    if lit:
        colours = colours * material.stage.light[:, None]
    body, mask = material.joints(times, side=side).cpu(), material.mask(times, side=side)
    background = (material.background(side=side) * 2 - 1)[:, :, None].expand_as(video)
    found = [
        judge_dance(
            video[i].cpu(),
            colours[i].cpu(),
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
    moved = mouths(video, material, colours, times, side=side)
    line += f", mouths follow the faces with a correlation of {mean(moved):.2f}" if moved else ""
    return [line, *(_light_lines(video, material, recipe, times) if mode == "replacement" else [])]


def mouths(video: Tensor, material: Material, colours: Tensor, times: Tensor, *, side: int) -> list[float]:
    """For each character on whose skin ink can be seen: correlation of its mouth with the driving face's."""
    body, wanted = material.joints(times, side=side).cpu(), dancers.expressions(material.dance, times)[..., 1].cpu()
    radius = (dancers.HEAD * material.character.head * material.character.scale * side / dancers.UNIT).cpu()
    found = []
    for i in range(len(video)):
        skin = colours[i, dancers.SKIN].cpu()
        if skin.mean() > 0.3 and wanted[i].std() > 0.05:
            seen = mouth_opening(video[i].cpu(), skin, body[i, :, kp.NOSE], float(radius[i]))
            found.append(correlation(seen, wanted[i]))
    return found


def light_shares(video: Tensor, material: Material, recipe: AnimateRecipe, times: Tensor) -> list[float]:
    """How far the mean colour of each character lies from unlit (0) to fully lit (1), where the scene's light has a colour."""
    side = recipe.side
    person = dancers.person_mask(material.character, material.joints(times, side=side), side=side)
    plain, lit = (material.clip(times, side=side, lit=on) for on in (False, True))
    shares = []
    for i in range(len(video)):
        a, b, seen = (mean_colour(item[i], person[i]) for item in (plain, lit, video))
        if float((b - a).norm()) > 0.03:
            shares.append(float((seen - a) @ (b - a) / (b - a).square().sum()))
    return shares


def _light_lines(video: Tensor, material: Material, recipe: AnimateRecipe, times: Tensor) -> list[str]:
    shares = light_shares(video, material, recipe, times)
    if not shares:
        return []
    mean = sum(shares) / len(shares)
    return [f"eval light: {100 * mean:.0f} % of the way to the lit colours on average of {len(shares)}, {100 * min(shares):.0f} % at least"]
