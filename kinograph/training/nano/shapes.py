"""Commands for the members on drawn shapes: ti2v-nano, i2v-nano and t2v-nano."""
from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kinograph.checkpoints.layout import check_folder
from kinograph.checkpoints.recognise import TEXT_ENCODER, VAE_NAME
from kinograph.checkpoints.save import save_checkpoint
from kinograph.config import ModelSpec
from kinograph.models.tokenizer import Tokenizer
from kinograph.models.vae import VAE
from kinograph.training import flow, train_dit, train_text, train_vae
from kinograph.training.latents import LatentPool
from kinograph.training.nano import members
from kinograph.training.nano.encoders import ensure_tokenizer, text
from kinograph.training.nano.members import TOKENIZER
from kinograph.training.nano.options import (
    AddCommand,
    compiles_blocks,
    device_and_dtype,
    storage_options,
    text_options,
    train_config,
    training_options,
    with_options,
)
from kinograph.training.nano.running import run_training, say

EXPERT_OVERHEAD = 10.0  # seconds for judging and saving an expert; only `--finish_by` counts with it


def add_commands(command: AddCommand) -> None:
    sub = command("dit", dit, "train a transformer")
    sub.add_argument("--member", choices=members.MEMBERS, required=True)
    sub.add_argument("--vae", type=Path, required=True, help="folder with vae.part*.safetensors, or a VAE file")
    sub.add_argument("--budget", type=float, default=540.0, help="seconds of training, over all runs")
    training_options(sub)
    dit_options(sub)

    sub = command("pair", pair, "train i2v-nano and the four experts")
    sub.add_argument("--vae", type=Path, required=True, help="folder with vae.part*.safetensors, or a VAE file")
    sub.add_argument("--budget", type=float, default=290.0, help="seconds of training for all levels")
    sub.add_argument("--expert_budget", type=float, default=45.0, help="seconds of training for each expert")
    training_options(sub)
    dit_options(sub)

    sub = command("export", export, "write the published layout")
    sub.add_argument("--member", choices=members.MEMBERS, required=True)
    sub.add_argument("--vae", type=Path, required=True)
    sub.add_argument("--dit", type=Path, help="folder with dit.part*.safetensors")
    sub.add_argument("--high", type=Path, help="of the high-noise expert, where it differs")
    sub.add_argument("--low", type=Path, help="of the low-noise expert")
    sub.add_argument("--tokenizer", type=Path, help="default: the one beside the transformer")
    sub.add_argument("--out", type=Path, required=True)
    storage_options(sub)
    sub.add_argument("--overwrite", action="store_true", help="replace the folder, and what it shares with other members")


def dit_options(sub: argparse.ArgumentParser) -> None:
    text_options(sub)
    sub.add_argument("--batch", type=int)
    sub.add_argument("--clips", type=int, help="in the pool")
    sub.add_argument("--shift", type=float, help="of the training levels")
    sub.add_argument("--dim", type=int, help="width; heads of 64")
    sub.add_argument("--layers", type=int)
    sub.add_argument("--attention", choices=tuple(train_dit.ATTENTION))
    sub.add_argument("--init", type=Path, help="folder of a trained transformer to start from")
    sub.add_argument("--expert", choices=("high", "low"), help="train only on one side of the expert boundary")


def dit(args: argparse.Namespace) -> None:
    recipe = dit_recipe(args)
    initial = initial_weights(args, recipe.spec)
    data = training_data(args, recipe)
    train_member(args, recipe, data, initial, args.out)


def pair(args: argparse.Namespace) -> None:
    """The image member for all levels, then the experts of both members from it, all on one pool of clips."""
    joint = argparse.Namespace(**vars(args) | {"member": "i2v-nano", "expert": None})
    recipe = dit_recipe(joint)
    initial = initial_weights(joint, recipe.spec)
    data = training_data(joint, recipe)
    experts = [(member, expert) for member in ("t2v-nano", "i2v-nano") for expert in ("high", "low")]
    reserved = len(experts) * (args.expert_budget + EXPERT_OVERHEAD)
    train_member(joint, recipe, data, initial, args.out, reserved=reserved)
    for number, (member, expert) in enumerate(experts):
        options = argparse.Namespace(**vars(args) | {"member": member, "expert": expert, "budget": args.expert_budget, "finish_by": None})
        if args.finish_by is not None:  # what is left, shared among those that are left
            left = args.finish_by - (time.monotonic() - args.started)
            options.budget = max(1.0, left / (len(experts) - number) - EXPERT_OVERHEAD)
        recipe = dit_recipe(options)
        trained = train_dit.load_dit(args.out)
        trained[flow.DIT] = train_dit.without_channels(trained[flow.DIT], recipe.spec.dit.in_dim)
        other = trained[flow.DIT]
        if expert == "low":
            other = train_dit.load_dit(args.out / f"{member}-high")[flow.DIT]
        train_member(options, recipe, data, trained, args.out / f"{member}-{expert}", other=other)


def export(args: argparse.Namespace) -> None:
    """Writes the published layout from the files that the trainings left; what members share goes beside the folder."""
    spec = members.MEMBERS[args.member].spec
    folders = {"high_noise": args.high or args.dit, "low_noise": args.low or args.dit}
    states = {name: train_dit.load_dit(folder) for name, folder in folders.items() if folder is not None}
    if not states:
        raise SystemExit("export needs --dit DIR, or --high DIR and --low DIR for the two experts")
    any_state = next(iter(states.values()))
    models = {expert.name: states.get(expert.name, any_state)[flow.DIT] for expert in spec.experts}
    models = {name: train_dit.without_channels(state, spec.dit.in_dim) for name, state in models.items()}
    tensors = train_vae.vae_state(args.vae)
    packed = {VAE_NAME: args.int8_vae, TEXT_ENCODER: args.int8_text, **dict.fromkeys(models, args.int8)}
    save_checkpoint(
        args.out,
        spec,
        {**models, TEXT_ENCODER: any_state[flow.TEXT], VAE_NAME: tensors},
        tokenizer=args.tokenizer or (args.dit or args.high) / TOKENIZER,
        dtype=torch.float16,
        int8=[name for name, is_packed in packed.items() if is_packed],
        overwrite=args.overwrite,
    )
    for name, weights in check_folder(spec, args.out).items():
        size = sum(file.stat().st_size for file in weights.files)
        say(f"{spec.name} {name}: {size / 2**20:.1f} MiB in {weights.files[0].parent.resolve()}")


# --------------------------------------------------------------------------------------------------------- their parts


def dit_recipe(args: argparse.Namespace) -> train_dit.DiTRecipe:
    """The recipe that the options describe."""
    member = members.MEMBERS[args.member]
    spec = member.spec
    if args.size:
        spec = replace(spec, sizes=((args.size, args.size),))
    if args.dim or args.layers:
        width = args.dim or spec.dit.dim
        shape = replace(spec.dit, dim=width, ffn_dim=4 * width, num_heads=width // 64, num_layers=args.layers or spec.dit.num_layers)
        spec = replace(spec, dit=shape)
    recipe = train_dit.DiTRecipe(spec=spec, mode=member.mode)
    options = {"batch": args.batch, "num_clips": args.clips, "attention": args.attention, "shift": args.shift}
    recipe = replace(recipe, **{name: value for name, value in options.items() if value})
    boundary = spec.experts[0].t_min
    ranges = {None: (0.0, 1.0), "high": (boundary, 1.0), "low": (0.0, boundary)}
    return replace(
        recipe,
        optimizer=with_options(recipe.optimizer, args),
        t_range=ranges[args.expert],
        train_text=False,
        seed=recipe.seed + args.seed,
    )


@dataclass(frozen=True)
class TrainingData:
    """What trainings of members with one VAE can share."""

    vae: VAE
    tokenizer: Tokenizer
    pool: LatentPool


def training_data(args: argparse.Namespace, recipe: train_dit.DiTRecipe) -> TrainingData:
    device, dtype = device_and_dtype(args)
    tokenizer = Tokenizer(args.out / TOKENIZER, recipe.spec.text.text_len)
    model = train_vae.load_vae(args.vae, recipe.spec.vae, device=device, dtype=dtype)
    started = time.monotonic()
    pool = train_dit.pool_of(recipe, model, tokenizer)
    say(f"pool: {recipe.num_clips} clips, {pool.num_bytes / 2**30:.2f} GiB, {time.monotonic() - started:.1f} s")
    return TrainingData(model, tokenizer, pool)


def initial_weights(args: argparse.Namespace, spec: ModelSpec) -> dict[str, dict[str, torch.Tensor]]:
    """What training starts from, by module: a trained member, or a text encoder that has read captions."""
    ensure_tokenizer(args)
    if args.init is not None:
        initial = train_dit.load_dit(args.init)
        # A text-to-video expert may start from a model that sees pictures too.
        initial[flow.DIT] = train_dit.without_channels(initial[flow.DIT], spec.dit.in_dim)
        return initial
    if not list(args.out.glob(f"{train_text.STEM}.part*")):
        text(args)
    return {flow.TEXT: train_text.load(args.out)}


def train_member(
    args: argparse.Namespace,
    recipe: train_dit.DiTRecipe,
    data: TrainingData,
    initial: Mapping[str, Mapping[str, torch.Tensor]],
    out: Path,
    *,
    other: Mapping[str, torch.Tensor] | None = None,
    reserved: float = 0.0,
) -> None:
    """One transformer, trained, judged and saved in `out`. `other`: weights of the other expert, by default where `initial` has them.

    `reserved` seconds of `--finish_by` are left for what comes after.
    """
    device, dtype = device_and_dtype(args)
    judged = train_dit.Judged.prepare(recipe, data.vae, data.tokenizer)
    if args.expert:
        partner = train_dit.DiT(recipe.spec.dit)
        partner.load_state_dict(initial[flow.DIT] if other is None else other)
        judged.other = partner.to(device, dtype).eval().requires_grad_(False)
    training = train_dit.prepare(recipe, data.pool, judged, out, dtype=dtype, initial=initial)
    say(
        f"{recipe.spec.name}: {training.weights.size / 1e6:.2f} M parameters, {recipe.num_tokens} tokens, batch {recipe.batch}, "
        f"{recipe.optimizer.kind}, {recipe.training_flops() / 1e9:.1f} GFLOP a sample, {device}, {dtype}"
    )
    trainer = flow.trainer_of(training, train_config(args, reserved=reserved), compiled=compiles_blocks(args, device))
    run_training(trainer, argparse.Namespace(**vars(args) | {"out": out}), train_dit.STEM, training.evaluate)
