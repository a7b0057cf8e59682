"""The nano models, from nothing to a checkpoint folder: `python -m kinograph.training.nano COMMAND`.

    all ti2v-nano --out DIR                                     everything below, in order
    prepare --out DIR                                           the tokenizer, learned from captions
    text --out DIR                                              the text encoder, on captions alone
    vae --kind 2.2 --budget 540 --out DIR                       a VAE, its latent statistics folded in
    latents --kind 2.2 --vae DIR                                what its latents look like
    decoder --vae FILE --out DIR                                its decoder, on clips of all members that share it
    dit --member ti2v-nano --vae DIR --budget 540 --out DIR     the transformer (and `text`, where DIR has none yet)
    pair --vae DIR --budget 290 --expert_budget 45 --out DIR    i2v-nano for all levels, then both experts of t2v and i2v
    export --member ti2v-nano --vae DIR --dit DIR --out FOLDER  the published layout
    speech_encoder --out DIR                                    the waves of a small voice, and what hears them
    talkers_vae --vae FILE [--decoder_only] --out DIR           a VAE for drawn people
    speech --vae FILE --speech_encoder DIR ... --out DIR        s2v-nano, on drawn people who speak
    export_speech --dit DIR --init DIR ... --out FOLDER         it in the published layout
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
import time
from collections.abc import Sequence

from kinograph.training.bench import run_all
from kinograph.training.nano import dancers, encoders, members, shapes, talkers
from kinograph.training.nano.options import Command, device_and_dtype, storage_options, training_options


def everything(args: argparse.Namespace) -> None:
    """prepare, text, vae, dit, export, with each budget its own."""
    kind = members.MEMBERS[args.member].spec.vae.version
    work, budgets = args.out, {"vae": args.vae_budget, "dit": args.dit_budget}
    common = vars(args) | {"kind": kind, "vae": work, "dit": work, "high": None, "low": None, "tokenizer": None, "overwrite": True}
    encoders.prepare(args)
    encoders.text(argparse.Namespace(**common))
    for name, command in (("vae", encoders.vae), ("dit", shapes.dit)):
        command(argparse.Namespace(**common | {"budget": budgets[name]}))
    shapes.export(argparse.Namespace(**common | {"out": work / args.member}))


def bench(args: argparse.Namespace) -> None:
    run_all(*device_and_dtype(args), seconds=args.seconds)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m kinograph.training.nano", description=(__doc__ or "").partition("\n")[0])
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, function: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(run=function)
        sub.add_argument("--device", help="cuda, cuda:1, cpu; default: cuda where there is one")
        return sub

    sub = command("all", everything, "prepare, text, vae, dit, export")
    sub.add_argument("member", choices=members.MEMBERS)
    sub.add_argument("--vae_budget", type=float, default=540.0, help="seconds")
    sub.add_argument("--dit_budget", type=float, default=540.0, help="seconds")
    storage_options(sub)
    training_options(sub)
    shapes.dit_options(sub)

    for module in (encoders, shapes, talkers, dancers):
        module.add_commands(command)

    sub = command("bench", bench, "time training steps")
    sub.add_argument("--seconds", type=float, default=60.0, help="sections that would start later are skipped")
    return top


def main(argv: Sequence[str] | None = None) -> None:
    started = time.monotonic()
    args = parser().parse_args(argv)
    args.started = started
    args.run(args)
