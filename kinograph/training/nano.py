"""The nano models, from nothing to a checkpoint folder: `python -m kinograph.training.nano COMMAND`.

    all ti2v-nano --out DIR                                     everything below, in order
    prepare --out DIR                                           the tokenizer, learned from captions
    vae --kind 2.2 --budget 540 --out DIR                       a VAE, its latent statistics folded in
    latents --kind 2.2 --vae DIR                                what its latents look like
    dit --member ti2v-nano --vae DIR --budget 540 --out DIR     transformer and text encoder
    export --member ti2v-nano --vae DIR --dit DIR --out FOLDER  the published layout
    bench                                                       step times on this GPU, in about a minute

`--budget` counts the seconds of training over all runs; `--stop_after` ends this run earlier, so that `--resume FILE`
(exact, from `state-*.pt`) or `--resume_light` (from the small files under `resume/`) can go on later.
Two experts: train the member once, then `dit --expert high` and `dit --expert low`, both `--init` from it.
"""
from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kinograph.checkpoints.layout import TEXT_ENCODER, VAE_NAME, check_folder
from kinograph.checkpoints.save import save_checkpoint
from kinograph.config import MODELS, NANO_TEXT, ModelSpec
from kinograph.models.tokenizer import Tokenizer
from kinograph.training import train_dit, train_vae
from kinograph.training.bench import run_all
from kinograph.training.captions import caption
from kinograph.training.latents import ClipSize, latent_statistics
from kinograph.training.optim import OptimizerConfig
from kinograph.training.parts import load_parts, save_parts
from kinograph.training.tokenizer import train_tokenizer
from kinograph.training.toybox import sample_scenes
from kinograph.training.trainer import TrainConfig, Trainer

TOKENIZER = "tokenizer"  # folder inside --out
NUM_TOKENIZER_CAPTIONS = 40_000


@dataclass(frozen=True)
class Member:
    """A nano model and the mode it trains in (`train_dit.MODES`)."""

    spec: ModelSpec
    mode: str


MEMBERS: Mapping[str, Member] = {
    name: Member(MODELS[name], mode) for name, mode in (("ti2v-nano", "pinned"), ("i2v-nano", "channels"), ("t2v-nano", "text"))
}


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


def dit(args: argparse.Namespace) -> None:
    device, dtype = device_and_dtype(args)
    recipe = dit_recipe(args)
    ensure_tokenizer(args)
    tokenizer = Tokenizer(args.out / TOKENIZER, recipe.spec.text.text_len)
    model = train_vae.load_vae(args.vae, recipe.spec.vae, device=device, dtype=dtype)
    started = time.monotonic()
    pool = train_dit.pool_of(recipe, model, tokenizer)
    say(f"pool: {recipe.num_clips} clips, {pool.num_bytes / 2**30:.2f} GiB, {time.monotonic() - started:.1f} s")
    judged = train_dit.Judged.prepare(recipe, model, tokenizer)
    initial = None if args.init is None else train_dit.load_dit(args.init)
    if initial is not None:  # a text-to-video expert may start from a model that sees pictures too
        initial[train_dit.DIT] = train_dit.without_channels(initial[train_dit.DIT], recipe.spec.dit.in_dim)
    if initial is not None and args.expert:
        other = train_dit.DiT(recipe.spec.dit)
        other.load_state_dict(initial[train_dit.DIT])
        judged.other = other.to(device, dtype).eval().requires_grad_(False)
    training = train_dit.prepare(recipe, pool, judged, args.out, dtype=dtype, initial=initial)
    say(
        f"{recipe.spec.name}: {training.weights.size / 1e6:.2f} M parameters, {recipe.num_tokens} tokens, batch {recipe.batch}, "
        f"{recipe.optimizer.kind}, {recipe.training_flops() / 1e9:.1f} GFLOP a sample, {device}, {dtype}"
    )
    compiled = args.compile == "on" or (args.compile == "auto" and device.type == "cuda")
    trainer = train_dit.trainer_of(training, train_config(args), compiled=compiled)
    run_training(trainer, args, train_dit.STEM, training.evaluate)


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
    tensors, _ = load_parts(args.vae, train_vae.STEM)
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
    """prepare, vae, dit, export, with each budget its own."""
    kind = MEMBERS[args.member].spec.vae.version
    work, budgets = args.out, {"vae": args.vae_budget, "dit": args.dit_budget}
    common = vars(args) | {"kind": kind, "vae": work, "dit": work, "high": None, "low": None, "tokenizer": None, "overwrite": True}
    prepare(args)
    for name, command in (("vae", vae), ("dit", dit)):
        command(argparse.Namespace(**common | {"budget": budgets[name]}))
    export(argparse.Namespace(**common | {"out": work / args.member}))


def bench(args: argparse.Namespace) -> None:
    run_all(*device_and_dtype(args), seconds=args.seconds)


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
        train_text=args.expert is None,
        seed=recipe.seed + args.seed,
    )


def with_options(config: OptimizerConfig, args: argparse.Namespace) -> OptimizerConfig:
    chosen = {"kind": args.optimizer, "lr": args.lr, "muon_lr": args.muon_lr}
    return replace(config, **{name: value for name, value in chosen.items() if value})


def sized(size: ClipSize, side: int | None) -> ClipSize:
    return replace(size, height=side, width=side) if side else size


def train_config(args: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        budget_seconds=None if args.steps else args.budget,
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

    sub = command("all", everything, "prepare, vae, dit, export")
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

    sub = command("dit", dit, "train a transformer and its text encoder")
    sub.add_argument("--member", choices=MEMBERS, required=True)
    sub.add_argument("--vae", type=Path, required=True, help="folder with vae.part*.safetensors")
    sub.add_argument("--budget", type=float, default=540.0, help="seconds of training, over all runs")
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

    sub = command("bench", bench, "time training steps")
    sub.add_argument("--seconds", type=float, default=60.0, help="sections that would start later are skipped")
    return top


def _training_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, required=True, help="everything is written here")
    sub.add_argument("--size", type=int, help="side of the clips in pixels")
    sub.add_argument("--steps", type=int, help="a budget in steps instead of seconds: reproducible")
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


def _dit_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--batch", type=int)
    sub.add_argument("--clips", type=int, help="in the pool")
    sub.add_argument("--shift", type=float, help="of the training levels")
    sub.add_argument("--dim", type=int, help="width; heads of 64")
    sub.add_argument("--layers", type=int)
    sub.add_argument("--attention", choices=tuple(train_dit.ATTENTION))
    sub.add_argument("--init", type=Path, help="folder of a trained transformer to start from")
    sub.add_argument("--expert", choices=("high", "low"), help="train only on one side of the expert boundary")


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
