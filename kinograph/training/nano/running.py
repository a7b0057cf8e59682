"""A training from its options to its files, and what is said on the way."""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from kinograph.training.parts import load_parts, save_parts
from kinograph.training.trainer import Trainer


def say(line: str) -> None:
    """Prints at once: output that waits in a buffer is lost when a machine's time is up."""
    print(line, flush=True)


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
