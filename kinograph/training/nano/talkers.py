"""Commands for s2v-nano: a person who speaks."""
from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from kinograph.checkpoints.layout import SPEECH_FILE
from kinograph.checkpoints.recognise import SPEECH_ENCODER, TEXT_ENCODER, VAE_NAME
from kinograph.checkpoints.save import save_checkpoint
from kinograph.config import MODELS
from kinograph.models.tokenizer import Tokenizer
from kinograph.models.vae import VAE
from kinograph.models.wav2vec2 import module_names
from kinograph.training import flow, s2v_vae, train_dit, train_s2v, train_speech_encoder, train_vae, vae_tuning
from kinograph.training.nano.members import TOKENIZER
from kinograph.training.nano.options import (
    AddCommand,
    compiles_blocks,
    device_and_dtype,
    storage_options,
    train_config,
    training_options,
    with_options,
)
from kinograph.training.nano.running import run_training, say
from kinograph.training.s2v_pool import Texts, pools_of
from kinograph.training.s2v_recipe import S2VRecipe
from kinograph.training.s2v_samples import Judged
from kinograph.training.s2v_sounds import hear, sound_pieces
from kinograph.training.speech_sounds import babble, espeak_waves, load_waves, save_waves
from kinograph.training.talkers import PALETTES
from kinograph.training.trainer import TrainConfig

SPEC = MODELS["s2v-nano"]


def add_commands(command: AddCommand) -> None:
    sub = command("speech_encoder", speech_encoder, "make speech with espeak-ng and train what hears it")
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--spoken", type=float, default=300.0, help="seconds of speech to train on")
    sub.add_argument("--budget", type=float, default=170.0, help="seconds")
    sub.add_argument("--steps", type=int)

    sub = command("speech", speech, "train the transformer of s2v-nano")
    sub.set_defaults(decoder_only=False)
    sub.add_argument("--vae", type=Path, required=True, help="a VAE file, or a folder with vae.part*.safetensors")
    sub.add_argument("--vae_budget", type=float, default=0.0, help="seconds to tune it to talkers first")
    sub.add_argument("--vae_steps", type=int)
    sub.add_argument("--vae_batch", type=int, default=4)
    sub.add_argument("--init", type=Path, help="folder of a trained i2v-nano to start from, with its tokenizer")
    sub.add_argument("--tokenizer", type=Path, help="default: the one beside --init")
    sub.add_argument("--go_on", type=Path, help="folder with s2v.part*: start from these weights instead")
    sub.add_argument("--speech_encoder", type=Path, required=True)
    sub.add_argument("--train_waves", type=Path, required=True)
    sub.add_argument("--test_waves", type=Path, required=True)
    sub.add_argument("--num_waves", type=int, help="of the training waves, to try things out")
    sub.add_argument("--palette", choices=tuple(PALETTES), default="natural")
    sub.add_argument("--sound_delay", type=int, default=3, help="frames that mouths are behind the features they are trained with")
    sub.add_argument("--budget", type=float, default=330.0, help="seconds of training, over all runs")
    sub.add_argument("--pool_seconds", type=float, default=60.0)
    sub.add_argument("--clips", type=int, help="in the pools")
    sub.add_argument("--batch", type=int, help="samples of a step that go on from motion")
    sub.add_argument("--first_batch", type=int, help="samples of a step that start a video")
    sub.add_argument("--num_eval", type=int)
    training_options(sub)

    sub = command("talkers_vae", talkers_vae, "tune a VAE to talkers, and nothing else")
    sub.add_argument("--vae", type=Path, required=True, help="a VAE file, or a folder with vae.part*.safetensors")
    sub.add_argument("--decoder_only", action="store_true", help="leave the latents as they are, and the transformers trained on them")
    sub.add_argument("--vae_budget", type=float, default=120.0, help="seconds")
    sub.add_argument("--vae_steps", type=int)
    sub.add_argument("--vae_batch", type=int, default=4)
    sub.add_argument("--palette", choices=tuple(PALETTES), default="natural")
    training_options(sub)

    sub = command("export_speech", export_speech, "write s2v-nano in the published layout")
    sub.add_argument("--dit", type=Path, required=True, help="folder with s2v.part*.safetensors")
    sub.add_argument("--init", type=Path, required=True, help="folder with the text encoder and tokenizer that members share")
    sub.add_argument("--vae", type=Path, required=True, help="a VAE file, or a folder with vae.part*.safetensors")
    sub.add_argument("--speech_encoder", type=Path, required=True)
    sub.add_argument("--tokenizer", type=Path)
    sub.add_argument("--out", type=Path, required=True)
    storage_options(sub)
    sub.add_argument("--overwrite", action="store_true")


def speech_encoder(args: argparse.Namespace) -> None:
    """The waves of espeak-ng, for training and held out, and the encoder that hears them."""
    for name, seconds, seed in (("talk_train", args.spoken, 1), ("talk_test", args.spoken / 5, 99)):
        save_waves(espeak_waves(seconds, seed), args.out / f"{name}.npz")
    waves, rng = load_waves(args.out / "talk_train.npz"), np.random.default_rng(5)
    waves += [babble(8, rng) for _ in range(max(1, len(waves) // 2))]
    config = SPEC.speech_encoder
    assert config is not None
    encoder, heads = train_speech_encoder.fit(config, waves, seconds=args.budget, steps=args.steps, report=say)
    train_speech_encoder.save_encoder(encoder, args.out / train_speech_encoder.FOLDER)
    loud, colour, *_ = train_speech_encoder.heard(encoder, heads, load_waves(args.out / "talk_test.npz")).tolist()
    say(f"held-out speech: loudness heard with correlation {loud:.3f}, vowel colour with {colour:.3f}")


def speech(args: argparse.Namespace) -> None:
    """Tunes a VAE to talkers if asked, then trains the speech-to-video transformer."""
    device, dtype = device_and_dtype(args)
    options = {"num_clips": args.clips, "motion_batch": args.batch, "first_batch": args.first_batch, "num_eval": args.num_eval}
    recipe = S2VRecipe(spec=SPEC, palette=args.palette, sound_delay=args.sound_delay, pool_seconds=args.pool_seconds)
    recipe = replace(recipe, **{name: value for name, value in options.items() if value})
    recipe = replace(recipe, optimizer=with_options(recipe.optimizer, args), seed=recipe.seed + args.seed)
    assert SPEC.speech_encoder is not None
    encoder = train_speech_encoder.load_encoder(args.speech_encoder, SPEC.speech_encoder, device=device)
    held_out = [hear(encoder, wave, extra=recipe.frames) for wave in load_waves(args.test_waves)[: recipe.num_eval]]
    vae = _talkers_vae(args, recipe, device, dtype)
    say(s2v_vae.judge_vae(recipe, vae, held_out, count=min(8, recipe.num_eval)))
    sounds = sound_pieces(load_waves(args.train_waves)[: args.num_waves], recipe, encoder)
    started = time.monotonic()
    pools = pools_of(recipe, vae, sounds)
    size = sum(pool.num_bytes for pool, _ in pools) / 2**30
    say(f"pools: {' and '.join(str(len(pool)) for pool, _ in pools)} clips, {size:.2f} GiB, {time.monotonic() - started:.1f} s")
    base = None if args.init is None else train_dit.load_dit(args.init)
    tokenizer = args.tokenizer or (args.init and args.init / TOKENIZER)
    has_words = base is not None and tokenizer is not None and (tokenizer / "tokenizer.json").is_file()
    state = base[flow.TEXT] if base is not None and has_words else None
    words = Tokenizer(tokenizer, SPEC.text.text_len) if has_words else None
    texts = Texts.encode(recipe, state, words, device)
    judged = Judged(recipe, vae, held_out)
    if args.go_on is not None:
        weights = train_s2v.load_s2v(args.go_on)
    else:
        weights = train_s2v.initial_state(recipe, None if base is None else base[flow.DIT])
    training = train_s2v.prepare(recipe, pools, texts, judged, args.out, dtype=dtype, state=weights)
    batches = f"{recipe.motion_batch} + {recipe.first_batch}"
    say(f"{SPEC.name}: {training.weights.size / 1e6:.2f} M parameters, batch {batches}, {device}, {dtype}")
    trainer = flow.trainer_of(training, train_config(args), compiled=compiles_blocks(args, device))
    run_training(trainer, args, train_s2v.STEM, training.evaluate)


def talkers_vae(args: argparse.Namespace) -> None:
    """Tunes a VAE to talkers alone, whole or only its decoder."""
    device, dtype = device_and_dtype(args)
    _talkers_vae(args, S2VRecipe(spec=SPEC, palette=args.palette), device, dtype)
    say(f"VAE in {args.out}")


def _talkers_vae(args: argparse.Namespace, recipe: S2VRecipe, device: torch.device, dtype: torch.dtype) -> VAE:
    """The VAE of --vae, a file or a folder that `speech` left one in; tuned first where there is a budget for it."""
    if args.vae_budget or args.vae_steps:
        clips = s2v_vae.TalkerClips.sampled(recipe, device=device, batch=args.vae_batch)
        state = train_vae.vae_state(args.vae)
        tuning = vae_tuning.vae_tuning(recipe.spec.vae, state, clips, device=device, dtype=dtype, decoder_only=args.decoder_only)
        budget = {"budget_steps": args.vae_steps} if args.vae_steps else {"budget_seconds": args.vae_budget}
        pace = TrainConfig(**budget, warmup_steps=args.warmup, capture=not args.no_capture, seed=args.seed)
        vae_tuning.vae_trainer(tuning, pace).run()
        return vae_tuning.finish_vae(tuning, args.out, dtype=dtype)
    return train_vae.load_vae(args.vae, recipe.spec.vae, device=device, dtype=dtype)


def export_speech(args: argparse.Namespace) -> None:
    """Writes s2v-nano in the published layout: `export` for a member that hears."""
    base, tensors = train_dit.load_dit(args.init), train_s2v.load_s2v(args.dit)
    vae = train_vae.vae_state(args.vae)
    heard = dict(module_names(load_file(args.speech_encoder / SPEECH_FILE).items()))
    packed = {VAE_NAME: args.int8_vae, TEXT_ENCODER: args.int8_text, SPEC.experts[0].name: args.int8}
    save_checkpoint(
        args.out,
        SPEC,
        {SPEC.experts[0].name: tensors, TEXT_ENCODER: base[flow.TEXT], VAE_NAME: vae, SPEECH_ENCODER: heard},
        tokenizer=args.tokenizer or args.init / TOKENIZER,
        dtype=torch.float16,
        int8=[name for name, is_packed in packed.items() if is_packed],
        overwrite=args.overwrite,
    )
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    say(f"{SPEC.name}: {size / 2**20:.1f} MiB in {args.out.resolve()}")
