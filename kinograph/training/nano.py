"""The nano models, from nothing to a checkpoint folder: `python -m kinograph.training.nano COMMAND`.

    all ti2v-nano --out DIR                                     everything below, in order
    prepare --out DIR                                           the tokenizer, learned from captions
    text --out DIR                                              the text encoder, on captions alone
    vae --kind 2.2 --budget 540 --out DIR                       a VAE, its latent statistics folded in
    latents --kind 2.2 --vae DIR                                what its latents look like
    dit --member ti2v-nano --vae DIR --budget 540 --out DIR     the transformer (and `text`, where DIR has none yet)
    pair --vae DIR --budget 290 --expert_budget 45 --out DIR    i2v-nano for all levels, then both experts of t2v and i2v
    export --member ti2v-nano --vae DIR --dit DIR --out FOLDER  the published layout
    dance --init DIR --vae FILE --out DIR                       animate-nano, on drawn dancers
    relight --base DIR --vae FILE --out DIR                     its relighting LoRA
    dance_export --base DIR --lora DIR --out FOLDER             both in the published layout
    bench                                                       step times on this GPU, in about a minute

`--budget` counts the seconds of training over all runs; `--stop_after` ends this run earlier, so that `--resume FILE`
(exact, from `state-*.pt`) or `--resume_light` (from the small files under `resume/`) can go on later.
`--vae` is a folder that `vae` wrote, or a VAE file of the published layout. Two experts one by one: train the member once,
then `dit --expert high` and `dit --expert low`, both `--init` from it.
"""
from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from kinograph.checkpoints.layout import SPEECH_FILE, check_folder
from kinograph.checkpoints.load import load_model
from kinograph.checkpoints.recognise import SPEECH_ENCODER, TEXT_ENCODER, VAE_NAME
from kinograph.checkpoints.save import plain_state, replaced_folder, save_checkpoint, write_dit, write_pth
from kinograph.checkpoints.storage import pack_int8
from kinograph.config import MODELS, NANO_TEXT, ModelSpec, VAEConfig
from kinograph.models.t5 import TextEncoder, encode_prompts, init_weights
from kinograph.models.tokenizer import Tokenizer
from kinograph.models.vae import VAE
from kinograph.models.wav2vec2 import module_names
from kinograph.training import train_animate, train_dit, train_s2v, train_speech_encoder, train_text, train_vae
from kinograph.training.bench import run_all
from kinograph.training.captions import caption
from kinograph.training.latents import ClipSize, LatentPool, latent_statistics
from kinograph.training.optim import OptimizerConfig
from kinograph.training.parts import load_parts, save_parts
from kinograph.training.speech_sounds import babble, espeak_waves, load_waves, save_waves
from kinograph.training.talkers import PALETTES
from kinograph.training.tokenizer import train_tokenizer
from kinograph.training.toybox import sample_scenes
from kinograph.training.trainer import TrainConfig, Trainer

TOKENIZER = "tokenizer"  # folder inside --out
EXPERT_OVERHEAD = 10.0  # seconds for judging and saving an expert; only `--finish_by` counts with it
NUM_TOKENIZER_CAPTIONS = 40_000


@dataclass(frozen=True)
class Member:
    """A nano model and the mode it trains in (`train_dit.MODES`)."""

    spec: ModelSpec
    mode: str


MEMBERS: Mapping[str, Member] = {
    name: Member(MODELS[name], mode) for name, mode in (("ti2v-nano", "pinned"), ("i2v-nano", "channels"), ("t2v-nano", "text"))
}


SPEECH_SPEC = MODELS["s2v-nano"]


# ----------------------------------------------------------------------------------------------------------- commands


def prepare(args: argparse.Namespace) -> None:
    """Trains the tokenizer on captions of training scenes."""
    rng = random.Random(0)
    scenes = sample_scenes(NUM_TOKENIZER_CAPTIONS, 0)
    texts = [caption(scenes, index, rng) for index in range(len(scenes))]
    train_tokenizer(texts, NANO_TEXT.vocab_size, args.out / TOKENIZER)
    lengths = Tokenizer(args.out / TOKENIZER, NANO_TEXT.text_len)(texts[:2000])[1].sum(1).float()
    say(f"tokenizer in {args.out / TOKENIZER}: captions have {lengths.mean():.1f} tokens on average, {lengths.max():.0f} at most")


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


def text(args: argparse.Namespace) -> None:
    """Trains the text encoder on captions alone and says what can be read from it."""
    device, _ = device_and_dtype(args)
    started = time.monotonic()
    ensure_tokenizer(args)
    spec = MODELS["ti2v-nano"].text if args.member is None else MEMBERS[args.member].spec.text
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
        trained[train_dit.DIT] = train_dit.without_channels(trained[train_dit.DIT], recipe.spec.dit.in_dim)
        other = trained[train_dit.DIT]
        if expert == "low":
            other = train_dit.load_dit(args.out / f"{member}-high")[train_dit.DIT]
        train_member(options, recipe, data, trained, args.out / f"{member}-{expert}", other=other)


def export(args: argparse.Namespace) -> None:
    """Writes the published layout from the files that the trainings left; what members share goes beside the folder."""
    spec = MEMBERS[args.member].spec
    folders = {"high_noise": args.high or args.dit, "low_noise": args.low or args.dit}
    states = {name: train_dit.load_dit(folder) for name, folder in folders.items() if folder is not None}
    if not states:
        raise SystemExit("export needs --dit DIR, or --high DIR and --low DIR for the two experts")
    any_state = next(iter(states.values()))
    models = {expert.name: states.get(expert.name, any_state)[train_dit.DIT] for expert in spec.experts}
    models = {name: train_dit.without_channels(state, spec.dit.in_dim) for name, state in models.items()}
    tensors = train_vae.vae_state(args.vae)
    packed = {VAE_NAME: args.int8_vae, TEXT_ENCODER: args.int8_text, **dict.fromkeys(models, args.int8)}
    save_checkpoint(
        args.out,
        spec,
        {**models, TEXT_ENCODER: any_state[train_dit.TEXT], VAE_NAME: tensors},
        tokenizer=args.tokenizer or (args.dit or args.high) / TOKENIZER,
        dtype=torch.float16,
        int8=[name for name, is_packed in packed.items() if is_packed],
        overwrite=args.overwrite,
    )
    for name, weights in check_folder(spec, args.out).items():
        size = sum(file.stat().st_size for file in weights.files)
        say(f"{spec.name} {name}: {size / 2**20:.1f} MiB in {weights.files[0].parent.resolve()}")


def everything(args: argparse.Namespace) -> None:
    """prepare, text, vae, dit, export, with each budget its own."""
    kind = MEMBERS[args.member].spec.vae.version
    work, budgets = args.out, {"vae": args.vae_budget, "dit": args.dit_budget}
    common = vars(args) | {"kind": kind, "vae": work, "dit": work, "high": None, "low": None, "tokenizer": None, "overwrite": True}
    prepare(args)
    text(argparse.Namespace(**common))
    for name, command in (("vae", vae), ("dit", dit)):
        command(argparse.Namespace(**common | {"budget": budgets[name]}))
    export(argparse.Namespace(**common | {"out": work / args.member}))


def speech_encoder(args: argparse.Namespace) -> None:
    """The waves of espeak-ng, for training and held out, and the encoder that hears them."""
    for name, seconds, seed in (("talk_train", args.spoken, 1), ("talk_test", args.spoken / 5, 99)):
        save_waves(espeak_waves(seconds, seed), args.out / f"{name}.npz")
    waves, rng = load_waves(args.out / "talk_train.npz"), np.random.default_rng(5)
    waves += [babble(8, rng) for _ in range(max(1, len(waves) // 2))]
    config = SPEECH_SPEC.speech_encoder
    assert config is not None
    encoder, heads = train_speech_encoder.fit(config, waves, seconds=args.budget, steps=args.steps, report=say)
    train_speech_encoder.save_encoder(encoder, args.out / train_speech_encoder.FOLDER)
    loud, colour, *_ = train_speech_encoder.heard(encoder, heads, load_waves(args.out / "talk_test.npz")).tolist()
    say(f"held-out speech: loudness heard with correlation {loud:.3f}, vowel colour with {colour:.3f}")


def speech(args: argparse.Namespace) -> None:
    """Tunes a VAE to talkers if asked, then trains the speech-to-video transformer."""
    device, dtype = device_and_dtype(args)
    spec = SPEECH_SPEC
    options = {"num_clips": args.clips, "motion_batch": args.batch, "first_batch": args.first_batch, "num_eval": args.num_eval}
    recipe = train_s2v.S2VRecipe(spec=spec, palette=args.palette, sound_delay=args.sound_delay, pool_seconds=args.pool_seconds)
    recipe = replace(recipe, **{name: value for name, value in options.items() if value})
    recipe = replace(recipe, optimizer=with_options(recipe.optimizer, args), seed=recipe.seed + args.seed)
    assert spec.speech_encoder is not None
    encoder = train_speech_encoder.load_encoder(args.speech_encoder, spec.speech_encoder, device=device)
    held_out = [train_s2v.hear(encoder, wave, extra=recipe.frames) for wave in load_waves(args.test_waves)[: recipe.num_eval]]
    vae = _talkers_vae(args, recipe, device, dtype)
    say(train_s2v.judge_vae(recipe, vae, held_out, count=min(8, recipe.num_eval)))
    sounds = train_s2v.sound_pieces(load_waves(args.train_waves)[: args.num_waves], recipe, encoder)
    started = time.monotonic()
    pools = train_s2v.pools_of(recipe, vae, sounds)
    size = sum(pool.num_bytes for pool, _ in pools) / 2**30
    say(f"pools: {' and '.join(str(len(pool)) for pool, _ in pools)} clips, {size:.2f} GiB, {time.monotonic() - started:.1f} s")
    base = None if args.init is None else train_dit.load_dit(args.init)
    tokenizer = args.tokenizer or (args.init and args.init / TOKENIZER)
    has_words = base is not None and tokenizer is not None and (tokenizer / "tokenizer.json").is_file()
    state = base[train_dit.TEXT] if base is not None and has_words else None
    words = Tokenizer(tokenizer, spec.text.text_len) if has_words else None
    texts = train_s2v.Texts.encode(recipe, state, words, device)
    judged = train_s2v.Judged(recipe, vae, held_out)
    fresh = train_s2v.initial_state(recipe, None if base is None else base[train_dit.DIT])
    weights = fresh if args.go_on is None else train_s2v.load_s2v(args.go_on)
    training = train_s2v.prepare(recipe, pools, texts, judged, args.out, dtype=dtype, state=weights)
    batches = f"{recipe.motion_batch} + {recipe.first_batch}"
    say(f"{spec.name}: {training.weights.size / 1e6:.2f} M parameters, batch {batches}, {device}, {dtype}")
    compiled = args.compile == "on" or (args.compile == "auto" and device.type == "cuda")
    trainer = train_s2v.trainer_of(training, train_config(args), compiled=compiled)
    run_training(trainer, args, train_s2v.STEM, training.evaluate)


def _talkers_vae(args: argparse.Namespace, recipe: train_s2v.S2VRecipe, device: torch.device, dtype: torch.dtype) -> VAE:
    """The VAE of --vae, a file or a folder that `speech` left one in; tuned first where there is a budget for it."""
    config = recipe.spec.vae
    if args.vae_budget or args.vae_steps:
        tuning = train_s2v.vae_tuning(recipe, _vae_state(args.vae, config), device=device, dtype=dtype, batch=args.vae_batch)
        budget = {"budget_steps": args.vae_steps} if args.vae_steps else {"budget_seconds": args.vae_budget}
        pace = TrainConfig(**budget, warmup_steps=args.warmup, capture=not args.no_capture, seed=args.seed)
        train_s2v.vae_trainer(tuning, pace).run()
        return train_s2v.finish_vae(tuning, args.out, dtype=dtype)
    vae = VAE(config)
    vae.load_state_dict(_vae_state(args.vae, config))
    return vae.to(device, dtype).eval().requires_grad_(False)


def _vae_state(source: Path, config: VAEConfig) -> Mapping[str, torch.Tensor]:
    """The tensors of a VAE file, or of the folder that a training left."""
    if source.is_dir():
        return load_parts(source, train_vae.STEM)[0]
    return load_model(lambda: VAE(config), [source], device="cpu", dtype=torch.float32).state_dict()


def export_speech(args: argparse.Namespace) -> None:
    """Writes s2v-nano in the published layout: `export` for a member that hears."""
    spec = SPEECH_SPEC
    base, tensors = train_dit.load_dit(args.init), train_s2v.load_s2v(args.dit)
    vae = _vae_state(args.vae, spec.vae)
    heard = dict(module_names(load_file(args.speech_encoder / SPEECH_FILE).items()))
    packed = {VAE_NAME: args.int8_vae, TEXT_ENCODER: args.int8_text, spec.experts[0].name: args.int8}
    save_checkpoint(
        args.out,
        spec,
        {spec.experts[0].name: tensors, TEXT_ENCODER: base[train_dit.TEXT], VAE_NAME: vae, SPEECH_ENCODER: heard},
        tokenizer=args.tokenizer or args.init / TOKENIZER,
        dtype=torch.float16,
        int8=[name for name, is_packed in packed.items() if is_packed],
        overwrite=args.overwrite,
    )
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    say(f"{spec.name}: {size / 2**20:.1f} MiB in {args.out.resolve()}")


def bench(args: argparse.Namespace) -> None:
    run_all(*device_and_dtype(args), seconds=args.seconds)


def dance(args: argparse.Namespace) -> None:
    initial = {} if args.init is None else train_dit.load_dit(args.init)
    _train_animate(args, animate_recipe(args), initial, _prompt(initial, args.init and args.init / TOKENIZER))


def relight(args: argparse.Namespace) -> None:
    initial = train_animate.load_animate(args.base)
    recipe = replace(animate_recipe(args), relight=True, optimizer=with_options(OptimizerConfig(kind="adamw", lr=2e-3), args))
    _train_animate(args, recipe, initial, _prompt(initial, args.tokenizer))


def _train_animate(
    args: argparse.Namespace, recipe: train_animate.AnimateRecipe, initial: Mapping[str, Mapping[str, torch.Tensor]], text: torch.Tensor
) -> None:
    device, dtype = device_and_dtype(args)
    vae = train_vae.load_vae(args.vae, recipe.spec.vae, device=device, dtype=dtype)
    training = train_animate.prepare(recipe, vae, text, args.out, dtype=dtype, initial=initial, motion_steps=args.motion_steps, say=say)
    say(f"{recipe.spec.name}: {training.weights.size / 1e6:.2f} M parameters to train, batch {recipe.batch}, {device}, {dtype}")
    compiled = args.compile == "on" or (args.compile == "auto" and device.type == "cuda")
    trainer = train_animate.trainer_of(training, train_config(args), compiled=compiled)
    trainer.run(stop_at=None if args.stop_after is None else args.started + args.stop_after)
    say(training.evaluate())
    say(f"{trainer.step} steps, {trainer.seconds:.0f} s of training, {time.monotonic() - args.started:.0f} s in all")


def _prompt(initial: Mapping[str, Mapping[str, torch.Tensor]], tokenizer: Path | None) -> torch.Tensor:
    """[1, text_len, text_dim]: the default prompt, embedded; zeros without a text encoder."""
    spec = MODELS["animate-nano"]
    if tokenizer is None or not initial.get(train_dit.TEXT):
        return torch.zeros(1, spec.text.text_len, spec.text.dim)
    encoder = train_dit.TextEncoder(spec.text)
    encoder.load_state_dict(initial[train_dit.TEXT])
    return encode_prompts(encoder.eval(), Tokenizer(tokenizer, spec.text.text_len), [spec.default_prompt]).embeddings.detach()


def animate_recipe(args: argparse.Namespace) -> train_animate.AnimateRecipe:
    recipe = train_animate.AnimateRecipe(spec=MODELS["animate-nano"])
    options = {"batch": args.batch, "num_clips": args.clips, "shift": args.shift}
    recipe = replace(recipe, **{name: value for name, value in options.items() if value}, num_eval=args.num_eval)
    return replace(recipe, optimizer=with_options(recipe.optimizer, args), seed=recipe.seed + args.seed)


def dance_export(args: argparse.Namespace) -> None:
    """The transformer, the image encoder and the LoRA; VAE, text encoder and tokenizer are the shared ones."""
    spec = MODELS["animate-nano"]
    states = train_animate.load_animate(args.base)
    half = {name: plain_state(states[name], dtype=torch.float16) for name in (train_animate.DIT, train_animate.IMAGE)}
    packed = pack_int8(half[train_animate.DIT], keep=lambda name: name.startswith("motion_encoder."))
    with replaced_folder(args.out, overwrite=args.overwrite) as work:
        write_dit(work, packed, spec=spec)
        write_pth(work / spec.files.image_encoder, half[train_animate.IMAGE])
        if args.lora is not None:
            shutil.copytree(args.lora, work / train_animate.LORA_FOLDER)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    say(f"{spec.name}: {size / 1e6:.2f} MB in {args.out.resolve()}")


# --------------------------------------------------------------------------------------------------------- their parts


def say(line: str) -> None:
    """Prints at once: output that waits in a buffer is lost when a machine's time is up."""
    print(line, flush=True)


def dit_recipe(args: argparse.Namespace) -> train_dit.DiTRecipe:
    """The recipe that the options describe."""
    member = MEMBERS[args.member]
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


def with_options(config: OptimizerConfig, args: argparse.Namespace) -> OptimizerConfig:
    chosen = {"kind": args.optimizer, "lr": args.lr, "muon_lr": args.muon_lr}
    return replace(config, **{name: value for name, value in chosen.items() if value})


def sized(size: ClipSize, side: int | None) -> ClipSize:
    return replace(size, height=side, width=side) if side else size


def train_config(args: argparse.Namespace, *, reserved: float = 0.0) -> TrainConfig:
    budget = args.budget
    if args.finish_by is not None:
        budget = max(1.0, args.finish_by - reserved - (time.monotonic() - args.started))
    return TrainConfig(
        budget_seconds=None if args.steps else budget,
        budget_steps=args.steps,
        warmup_steps=args.warmup,
        decay=args.decay,
        capture=not args.no_capture,
        evaluate_every=args.evaluate_every,
        seed=args.seed,
    )


def device_and_dtype(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Where and in what the modules compute: bfloat16 on a GPU."""
    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # the float32 linears (time, head) may use TF32
        torch.backends.cudnn.allow_tf32 = True
    return device, torch.bfloat16 if device.type == "cuda" else torch.float32


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
        initial[train_dit.DIT] = train_dit.without_channels(initial[train_dit.DIT], spec.dit.in_dim)
        return initial
    if not list(args.out.glob(f"{train_text.STEM}.part*")):
        text(args)
    return {train_dit.TEXT: train_text.load(args.out)}


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
        partner.load_state_dict(initial[train_dit.DIT] if other is None else other)
        judged.other = partner.to(device, dtype).eval().requires_grad_(False)
    training = train_dit.prepare(recipe, data.pool, judged, out, dtype=dtype, initial=initial)
    say(
        f"{recipe.spec.name}: {training.weights.size / 1e6:.2f} M parameters, {recipe.num_tokens} tokens, batch {recipe.batch}, "
        f"{recipe.optimizer.kind}, {recipe.training_flops() / 1e9:.1f} GFLOP a sample, {device}, {dtype}"
    )
    compiled = args.compile == "on" or (args.compile == "auto" and device.type == "cuda")
    trainer = train_dit.trainer_of(training, train_config(args, reserved=reserved), compiled=compiled)
    run_training(trainer, argparse.Namespace(**vars(args) | {"out": out}), train_dit.STEM, training.evaluate)


def ensure_tokenizer(args: argparse.Namespace) -> None:
    if not (args.out / TOKENIZER / "tokenizer.json").is_file():
        prepare(args)


def run_training(trainer: Trainer, args: argparse.Namespace, name: str, evaluate: Callable[[], str]) -> None:
    """Resumes if asked, trains, judges, and leaves what the next run needs."""
    resume_folder = args.out / "resume"
    if args.resume:
        trainer.load(args.resume)
    elif args.resume_light:
        tensors, about = load_parts(args.resume_light, f"{name}-weights")
        trainer.start_from(tensors, step=int(about["step"]), seconds=float(about["seconds"]))
    stop_at = None if args.stop_after is None else args.started + args.stop_after
    trainer.run(stop_at=stop_at)
    say(evaluate())
    about = {"step": str(trainer.step), "seconds": f"{trainer.seconds:.1f}"}
    save_parts(trainer.weights.named(trainer.weights.master), resume_folder, f"{name}-weights", metadata=about)
    trainer.save(args.out / f"state-{name}.pt")
    state = "finished" if trainer.finished else f"stopped at {100 * trainer.progress:.0f} %"
    say(f"{name}: {state} after {trainer.step} steps, {trainer.seconds:.0f} s of training, {time.monotonic() - args.started:.0f} s in all")


# ----------------------------------------------------------------------------------------------------------- options


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m kinograph.training.nano", description=(__doc__ or "").partition("\n")[0])
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(run=function)
        sub.add_argument("--device", help="cuda, cuda:1, cpu; default: cuda where there is one")
        return sub

    sub = command("all", everything, "prepare, text, vae, dit, export")
    sub.add_argument("member", choices=MEMBERS)
    sub.add_argument("--vae_budget", type=float, default=540.0, help="seconds")
    sub.add_argument("--dit_budget", type=float, default=540.0, help="seconds")
    _storage_options(sub)
    _training_options(sub)
    _dit_options(sub)

    sub = command("prepare", prepare, "train the tokenizer")
    sub.add_argument("--out", type=Path, required=True)

    sub = command("vae", vae, "train a VAE")
    sub.add_argument("--kind", choices=train_vae.RECIPES, required=True)
    sub.add_argument("--budget", type=float, default=540.0, help="seconds of training, over all runs")
    _training_options(sub)

    sub = command("latents", latents, "look at a VAE's latents")
    sub.add_argument("--kind", choices=train_vae.RECIPES, required=True)
    sub.add_argument("--vae", type=Path, required=True)
    sub.add_argument("--size", type=int, help="side of the clips in pixels")

    sub = command("text", text, "train the text encoder")
    sub.set_defaults(member=None)
    sub.add_argument("--out", type=Path, required=True, help="everything is written here")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--no_capture", action="store_true", help="no CUDA graph")
    _text_options(sub)

    sub = command("dit", dit, "train a transformer")
    sub.add_argument("--member", choices=MEMBERS, required=True)
    sub.add_argument("--vae", type=Path, required=True, help="folder with vae.part*.safetensors, or a VAE file")
    sub.add_argument("--budget", type=float, default=540.0, help="seconds of training, over all runs")
    _training_options(sub)
    _dit_options(sub)

    sub = command("pair", pair, "train i2v-nano and the four experts")
    sub.add_argument("--vae", type=Path, required=True, help="folder with vae.part*.safetensors, or a VAE file")
    sub.add_argument("--budget", type=float, default=290.0, help="seconds of training for all levels")
    sub.add_argument("--expert_budget", type=float, default=45.0, help="seconds of training for each expert")
    _training_options(sub)
    _dit_options(sub)

    sub = command("export", export, "write the published layout")
    sub.add_argument("--member", choices=MEMBERS, required=True)
    sub.add_argument("--vae", type=Path, required=True)
    sub.add_argument("--dit", type=Path, help="folder with dit.part*.safetensors")
    sub.add_argument("--high", type=Path, help="of the high-noise expert, where it differs")
    sub.add_argument("--low", type=Path, help="of the low-noise expert")
    sub.add_argument("--tokenizer", type=Path, help="default: the one beside the transformer")
    sub.add_argument("--out", type=Path, required=True)
    _storage_options(sub)
    sub.add_argument("--overwrite", action="store_true", help="replace the folder, and what it shares with other members")

    sub = command("speech_encoder", speech_encoder, "make speech with espeak-ng and train what hears it")
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--spoken", type=float, default=300.0, help="seconds of speech to train on")
    sub.add_argument("--budget", type=float, default=170.0, help="seconds")
    sub.add_argument("--steps", type=int)

    sub = command("speech", speech, "train the transformer of s2v-nano")
    sub.add_argument("--vae", type=Path, required=True, help="a VAE file, or a folder with vae.part*.safetensors")
    sub.add_argument("--vae_budget", type=float, default=0.0, help="seconds to tune it to talkers first")
    sub.add_argument("--vae_steps", type=int)
    sub.add_argument("--vae_batch", type=int, default=16)
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
    _training_options(sub)

    sub = command("export_speech", export_speech, "write s2v-nano in the published layout")
    sub.add_argument("--dit", type=Path, required=True, help="folder with s2v.part*.safetensors")
    sub.add_argument("--init", type=Path, required=True, help="folder with the text encoder and tokenizer that members share")
    sub.add_argument("--vae", type=Path, required=True, help="a VAE file, or a folder with vae.part*.safetensors")
    sub.add_argument("--speech_encoder", type=Path, required=True)
    sub.add_argument("--tokenizer", type=Path)
    sub.add_argument("--out", type=Path, required=True)
    _storage_options(sub)
    sub.add_argument("--overwrite", action="store_true")

    sub = command("dance", dance, "train animate-nano")
    sub.add_argument("--init", type=Path, help="folder of a trained transformer and text encoder (dit.part*), with its tokenizer")
    _animate_options(sub, budget=300.0)

    sub = command("relight", relight, "train the relighting LoRA of animate-nano")
    sub.add_argument("--base", type=Path, required=True, help="folder that `dance` wrote")
    sub.add_argument("--tokenizer", type=Path, help="folder of the shared tokenizer")
    _animate_options(sub, budget=50.0)

    sub = command("dance_export", dance_export, "write animate-nano in the published layout")
    sub.add_argument("--base", type=Path, required=True, help="folder that `dance` wrote")
    sub.add_argument("--lora", type=Path, help="the folder relighting_lora that `relight` wrote")
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--overwrite", action="store_true")

    sub = command("bench", bench, "time training steps")
    sub.add_argument("--seconds", type=float, default=60.0, help="sections that would start later are skipped")
    return top


def _training_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, required=True, help="everything is written here")
    sub.add_argument("--size", type=int, help="side of the clips in pixels")
    sub.add_argument("--steps", type=int, help="a budget in steps instead of seconds: reproducible")
    sub.add_argument("--finish_by", type=float, help="training ends so many seconds after the program began, with its decay done")
    sub.add_argument("--stop_after", type=float, help="end this run so many seconds after the program began")
    sub.add_argument("--resume", type=Path, help="a state-*.pt of an earlier run: goes on exactly")
    sub.add_argument("--resume_light", type=Path, help="a folder with *-weights.part*: goes on with a fresh optimizer")
    sub.add_argument("--optimizer", choices=("muon", "adamw"))
    sub.add_argument("--lr", type=float, help="of AdamW; 1e-3 is good where it steps everything")
    sub.add_argument("--muon_lr", type=float)
    sub.add_argument("--warmup", type=int, default=200, help="steps")
    sub.add_argument("--decay", choices=("cosine", "linear"), default="cosine")
    sub.add_argument("--evaluate_every", type=float, default=120.0, help="seconds")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="auto: transformers on a GPU, no VAE")
    sub.add_argument("--no_capture", action="store_true", help="no CUDA graph")


def _text_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--text_budget", type=float, default=25.0, help="seconds of training of the text encoder")
    sub.add_argument("--text_steps", type=int, help="a budget in steps instead of seconds: reproducible")
    sub.add_argument("--text_captions", type=int, help="captions to learn from")


def _dit_options(sub: argparse.ArgumentParser) -> None:
    _text_options(sub)
    sub.add_argument("--batch", type=int)
    sub.add_argument("--clips", type=int, help="in the pool")
    sub.add_argument("--shift", type=float, help="of the training levels")
    sub.add_argument("--dim", type=int, help="width; heads of 64")
    sub.add_argument("--layers", type=int)
    sub.add_argument("--attention", choices=tuple(train_dit.ATTENTION))
    sub.add_argument("--init", type=Path, help="folder of a trained transformer to start from")
    sub.add_argument("--expert", choices=("high", "low"), help="train only on one side of the expert boundary")


def _animate_options(sub: argparse.ArgumentParser, *, budget: float) -> None:
    sub.add_argument("--vae", type=Path, required=True, help="file of the shared VAE")
    sub.add_argument("--budget", type=float, default=budget, help="seconds of training")
    sub.add_argument("--batch", type=int)
    sub.add_argument("--clips", type=int, help="in the pool")
    sub.add_argument("--shift", type=float, help="of the training levels")
    sub.add_argument("--motion_steps", type=int, default=600, help="of the motion encoder, before the rest")
    sub.add_argument("--num_eval", type=int, default=8, help="characters that are judged in each mode; 0: none")
    _training_options(sub)


def _storage_options(sub: argparse.ArgumentParser) -> None:
    for flag, what in (("--int8", "the transformers"), ("--int8_vae", "the VAE"), ("--int8_text", "the text encoder")):
        sub.add_argument(flag, action="store_true", help=f"store {what} in 8 bits")


def main(argv: Sequence[str] | None = None) -> None:
    started = time.monotonic()
    args = parser().parse_args(argv)
    args.started = started
    args.run(args)


if __name__ == "__main__":
    main()
