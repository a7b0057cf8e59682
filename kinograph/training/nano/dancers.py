"""Commands for animate-nano: a character that dances as another does."""
from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from kinograph.checkpoints.save import plain_state, replaced_folder, write_dit, write_pth
from kinograph.checkpoints.storage import pack_int8
from kinograph.config import MODELS
from kinograph.models.t5 import TextEncoder, encode_prompts
from kinograph.models.tokenizer import Tokenizer
from kinograph.training import flow, train_animate, train_dit, train_vae
from kinograph.training.animate_recipe import AnimateRecipe
from kinograph.training.nano.members import TOKENIZER
from kinograph.training.nano.options import AddCommand, compiles_blocks, device_and_dtype, train_config, training_options, with_options
from kinograph.training.nano.running import say
from kinograph.training.optim import OptimizerConfig

SPEC = MODELS["animate-nano"]


def add_commands(command: AddCommand) -> None:
    sub = command("dance", dance, "train animate-nano")
    sub.add_argument("--init", type=Path, help="folder of a trained transformer and text encoder (dit.part*), with its tokenizer")
    animate_options(sub, budget=300.0)

    sub = command("relight", relight, "train the relighting LoRA of animate-nano")
    sub.add_argument("--base", type=Path, required=True, help="folder that `dance` wrote")
    sub.add_argument("--tokenizer", type=Path, help="folder of the shared tokenizer")
    animate_options(sub, budget=50.0)

    sub = command("dance_export", dance_export, "write animate-nano in the published layout")
    sub.add_argument("--base", type=Path, required=True, help="folder that `dance` wrote")
    sub.add_argument("--lora", type=Path, help="the folder relighting_lora that `relight` wrote")
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--overwrite", action="store_true")


def animate_options(sub: argparse.ArgumentParser, *, budget: float) -> None:
    sub.add_argument("--vae", type=Path, required=True, help="file of the shared VAE")
    sub.add_argument("--budget", type=float, default=budget, help="seconds of training")
    sub.add_argument("--batch", type=int)
    sub.add_argument("--clips", type=int, help="in the pool")
    sub.add_argument("--shift", type=float, help="of the training levels")
    sub.add_argument("--motion_steps", type=int, default=600, help="of the motion encoder, before the rest")
    sub.add_argument("--num_eval", type=int, default=8, help="characters that are judged in each mode; 0: none")
    training_options(sub)


def dance(args: argparse.Namespace) -> None:
    initial = {} if args.init is None else train_dit.load_dit(args.init)
    _train_animate(args, animate_recipe(args), initial, _prompt(initial, args.init and args.init / TOKENIZER))


def relight(args: argparse.Namespace) -> None:
    initial = train_animate.load_animate(args.base)
    recipe = replace(animate_recipe(args), relight=True, optimizer=with_options(OptimizerConfig(kind="adamw", lr=2e-3), args))
    _train_animate(args, recipe, initial, _prompt(initial, args.tokenizer))


def dance_export(args: argparse.Namespace) -> None:
    """The transformer, the image encoder and the LoRA; VAE, text encoder and tokenizer are the shared ones."""
    states = train_animate.load_animate(args.base)
    half = {name: plain_state(states[name], dtype=torch.float16) for name in (flow.DIT, train_animate.IMAGE)}
    packed = pack_int8(half[flow.DIT], keep=lambda name: name.startswith("motion_encoder."))
    with replaced_folder(args.out, overwrite=args.overwrite) as work:
        write_dit(work, packed, spec=SPEC)
        write_pth(work / SPEC.files.image_encoder, half[train_animate.IMAGE])
        if args.lora is not None:
            shutil.copytree(args.lora, work / train_animate.LORA_FOLDER)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    say(f"{SPEC.name}: {size / 1e6:.2f} MB in {args.out.resolve()}")


# --------------------------------------------------------------------------------------------------------- their parts


def animate_recipe(args: argparse.Namespace) -> AnimateRecipe:
    recipe = AnimateRecipe(spec=SPEC)
    options = {"batch": args.batch, "num_clips": args.clips, "shift": args.shift}
    recipe = replace(recipe, **{name: value for name, value in options.items() if value}, num_eval=args.num_eval)
    return replace(recipe, optimizer=with_options(recipe.optimizer, args), seed=recipe.seed + args.seed)


def _prompt(initial: Mapping[str, Mapping[str, torch.Tensor]], tokenizer: Path | None) -> torch.Tensor:
    """[1, text_len, text_dim]: the default prompt, embedded; zeros without a text encoder."""
    if tokenizer is None or not initial.get(flow.TEXT):
        return torch.zeros(1, SPEC.text.text_len, SPEC.text.dim)
    encoder = TextEncoder(SPEC.text)
    encoder.load_state_dict(initial[flow.TEXT])
    return encode_prompts(encoder.eval(), Tokenizer(tokenizer, SPEC.text.text_len), [SPEC.default_prompt]).embeddings.detach()


def _train_animate(
    args: argparse.Namespace, recipe: AnimateRecipe, initial: Mapping[str, Mapping[str, torch.Tensor]], text: torch.Tensor
) -> None:
    if args.resume or args.resume_light:
        raise SystemExit("dance and relight train in one go and keep no state to go on from; leave --resume and --resume_light out")
    device, dtype = device_and_dtype(args)
    vae = train_vae.load_vae(args.vae, recipe.spec.vae, device=device, dtype=dtype)
    training = train_animate.prepare(recipe, vae, text, args.out, dtype=dtype, initial=initial, motion_steps=args.motion_steps, say=say)
    say(f"{recipe.spec.name}: {training.weights.size / 1e6:.2f} M parameters to train, batch {recipe.batch}, {device}, {dtype}")
    trainer = flow.trainer_of(training, train_config(args), compiled=compiles_blocks(args, device))
    trainer.run(stop_at=None if args.stop_after is None else args.started + args.stop_after)
    say(training.evaluate())
    say(f"{trainer.step} steps, {trainer.seconds:.0f} s of training, {time.monotonic() - args.started:.0f} s in all")
