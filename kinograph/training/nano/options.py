"""Flags that several commands have, and what they mean."""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from kinograph.training.optim import OptimizerConfig
from kinograph.training.trainer import TrainConfig

Command = Callable[[argparse.Namespace], None]


class AddCommand(Protocol):
    """What a module registers its commands with."""

    def __call__(self, name: str, function: Command, text: str) -> argparse.ArgumentParser:
        """The parser of a new command `name`, which runs `function`; `text` is its help."""


def training_options(sub: argparse.ArgumentParser) -> None:
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


def text_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--text_budget", type=float, default=25.0, help="seconds of training of the text encoder")
    sub.add_argument("--text_steps", type=int, help="a budget in steps instead of seconds: reproducible")
    sub.add_argument("--text_captions", type=int, help="captions to learn from")


def storage_options(sub: argparse.ArgumentParser) -> None:
    for flag, what in (("--int8", "the transformers"), ("--int8_vae", "the VAE"), ("--int8_text", "the text encoder")):
        sub.add_argument(flag, action="store_true", help=f"store {what} in 8 bits")


# -------------------------------------------------------------------------------------------------- what they mean


def device_and_dtype(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Where and in what the modules compute: bfloat16 on a GPU."""
    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # the float32 linears (time, head) may use TF32
        torch.backends.cudnn.allow_tf32 = True
    return device, torch.bfloat16 if device.type == "cuda" else torch.float32


def compiles_blocks(args: argparse.Namespace, device: torch.device) -> bool:
    """Whether a transformer is trained with compiled blocks."""
    return args.compile == "on" or (args.compile == "auto" and device.type == "cuda")


def with_options(config: OptimizerConfig, args: argparse.Namespace) -> OptimizerConfig:
    chosen = {"kind": args.optimizer, "lr": args.lr, "muon_lr": args.muon_lr}
    return replace(config, **{name: value for name, value in chosen.items() if value})


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
