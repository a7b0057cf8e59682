"""Commands for what the members on drawn shapes share: tokenizer, text encoder and VAEs."""
from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from pathlib import Path

import torch

from kinograph.config import MODELS, NANO_TEXT
from kinograph.models.t5 import TextEncoder, init_weights
from kinograph.models.tokenizer import Tokenizer
from kinograph.training import train_text, train_vae, vae_tuning
from kinograph.training.captions import caption
from kinograph.training.latents import ClipSize, latent_statistics
from kinograph.training.nano import members
from kinograph.training.nano.members import TOKENIZER
from kinograph.training.nano.options import AddCommand, device_and_dtype, text_options, train_config, training_options, with_options
from kinograph.training.nano.running import run_training, say
from kinograph.training.shared_clips import SharedClips, judge_shared
from kinograph.training.tokenizer import train_tokenizer
from kinograph.training.toybox import sample_scenes
from kinograph.training.trainer import TrainConfig

NUM_TOKENIZER_CAPTIONS = 40_000


def add_commands(command: AddCommand) -> None:
    sub = command("prepare", prepare, "train the tokenizer")
    sub.add_argument("--out", type=Path, required=True)

    sub = command("vae", vae, "train a VAE")
    sub.add_argument("--kind", choices=train_vae.RECIPES, required=True)
    sub.add_argument("--budget", type=float, default=540.0, help="seconds of training, over all runs")
    training_options(sub)

    sub = command("latents", latents, "look at a VAE's latents")
    sub.add_argument("--kind", choices=train_vae.RECIPES, required=True)
    sub.add_argument("--vae", type=Path, required=True)
    sub.add_argument("--size", type=int, help="side of the clips in pixels")

    sub = command("decoder", decoder, "tune the decoder of the shared VAE to clips of all kinds")
    sub.add_argument("--vae", type=Path, required=True, help="the VAE file, or a folder with vae.part*.safetensors")
    sub.add_argument("--budget", type=float, default=240.0, help="seconds of training")
    sub.add_argument("--batch", type=int, default=8)
    training_options(sub)

    sub = command("text", text, "train the text encoder")
    sub.set_defaults(member=None)
    sub.add_argument("--out", type=Path, required=True, help="everything is written here")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--no_capture", action="store_true", help="no CUDA graph")
    text_options(sub)


def prepare(args: argparse.Namespace) -> None:
    """Trains the tokenizer on captions of training scenes."""
    rng = random.Random(0)
    scenes = sample_scenes(NUM_TOKENIZER_CAPTIONS, 0)
    texts = [caption(scenes, index, rng) for index in range(len(scenes))]
    train_tokenizer(texts, NANO_TEXT.vocab_size, args.out / TOKENIZER)
    lengths = Tokenizer(args.out / TOKENIZER, NANO_TEXT.text_len)(texts[:2000])[1].sum(1).float()
    say(f"tokenizer in {args.out / TOKENIZER}: captions have {lengths.mean():.1f} tokens on average, {lengths.max():.0f} at most")


def ensure_tokenizer(args: argparse.Namespace) -> None:
    if not (args.out / TOKENIZER / "tokenizer.json").is_file():
        prepare(args)


def text(args: argparse.Namespace) -> None:
    """Trains the text encoder on captions alone and says what can be read from it."""
    device, _ = device_and_dtype(args)
    started = time.monotonic()
    ensure_tokenizer(args)
    spec = MODELS["ti2v-nano"].text if args.member is None else members.MEMBERS[args.member].spec.text
    recipe = replace(train_text.TextRecipe(), **{"num_captions": args.text_captions} if args.text_captions else {})
    torch.manual_seed(recipe.seed + args.seed)
    encoder = TextEncoder(spec)
    init_weights(encoder)
    training = train_text.prepare(recipe, encoder.to(device), Tokenizer(args.out / TOKENIZER, spec.text_len))
    say(f"text encoder: {len(training.captions)} captions, {time.monotonic() - started:.1f} s")
    budget = {"budget_steps": args.text_steps} if args.text_steps else {"budget_seconds": args.text_budget}
    train_text.train(training, TrainConfig(**budget, warmup_steps=50, seed=args.seed, capture=not args.no_capture))
    train_text.save(encoder, args.out)
    say(f"text encoder: held-out captions, % read rightly: {train_text.summary(training.accuracy())}")
    say(f"text encoder: from the first token alone: {train_text.summary(training.token_accuracy())}, {time.monotonic() - started:.1f} s")


def vae(args: argparse.Namespace) -> None:
    device, dtype = device_and_dtype(args)
    recipe = train_vae.RECIPES[args.kind]
    optimizer = with_options(recipe.optimizer, args)
    recipe = replace(recipe, size=sized(recipe.size, args.size), optimizer=optimizer, seed=recipe.seed + args.seed)
    training = train_vae.prepare(recipe, args.out, device=device, dtype=dtype)
    say(f"VAE {args.kind}: {training.weights.size / 1e6:.2f} M parameters, {recipe.optimizer.kind}, {device}, {dtype}")
    # Each width and crop size compiles anew, which can cost more of a short budget than it gains: `bench` tells.
    trainer = train_vae.trainer_of(training, train_config(args), compiled=args.compile == "on")
    run_training(trainer, args, f"{train_vae.STEM}-{args.kind}", training.evaluate)


def latents(args: argparse.Namespace) -> None:
    """Prints what the latents look like over held-out clips: after folding, mean 0 and deviation 1."""
    device, dtype = device_and_dtype(args)
    recipe = train_vae.RECIPES[args.kind]
    model = train_vae.load_vae(args.vae, recipe.config, device=device, dtype=dtype)
    scenes = sample_scenes(128, 99).to(device)
    started = time.monotonic()
    mean, std = latent_statistics(model, scenes, sized(recipe.size, args.size), batch=8)
    say(f"latents: mean {mean.min():.3f} to {mean.max():.3f}, deviation {std.min():.3f} to {std.max():.3f}")
    say(f"{len(scenes) / (time.monotonic() - started):.0f} clips/s drawn and encoded")


def decoder(args: argparse.Namespace) -> None:
    """Tunes the decoder of the 2.1 VAE; transformers trained on its latents stay valid."""
    device, dtype = device_and_dtype(args)
    config = train_vae.RECIPES["2.1"].config
    say("before: " + judge_shared(train_vae.load_vae(args.vae, config, device=device, dtype=dtype)))
    clips = SharedClips.sampled(device=device, batch=args.batch)
    tuning = vae_tuning.vae_tuning(config, train_vae.vae_state(args.vae), clips, device=device, dtype=dtype, decoder_only=True)
    # Drawing dancers makes small tensors on the host, which a CUDA graph cannot hold.
    vae_tuning.vae_trainer(tuning, replace(train_config(args), capture=False)).run()
    say(judge_shared(vae_tuning.finish_vae(tuning, args.out, dtype=dtype)))


def sized(size: ClipSize, side: int | None) -> ClipSize:
    return replace(size, height=side, width=side) if side else size
