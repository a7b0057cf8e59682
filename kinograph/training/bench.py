"""Step times of the nano trainings on this machine, in about a minute.

Every row runs on its own: a failure prints its traceback and the next row goes on.
"""
from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kinograph.config import TI2V_NANO, DiTConfig
from kinograph.runtime.device import synchronize
from kinograph.training import flow, train_dit, train_vae
from kinograph.training.latents import ClipSize, LatentPool
from kinograph.training.optim import OptimizerConfig
from kinograph.training.trainer import CapturedStep, TrainConfig, Trainer

WARM_STEPS = 5  # three before the graph is recorded, the recording, one replay


@dataclass(frozen=True)
class Row:
    """One thing to time. `build` gives a trainer whose first phase is timed; `samples` a step, `flops` a sample."""

    name: str
    samples: int
    build: Callable[[], Trainer]
    flops: float = 0.0
    capture: bool = True


def run_all(device: torch.device, dtype: torch.dtype, *, seconds: float, small: bool = False) -> None:
    """Times every row until `seconds` are over. `small`: tiny sizes, to try this file itself on a CPU."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(device, dtype, Path(folder), small=small):
            if time.monotonic() - started > seconds:
                print(f"{row.name}: skipped, {seconds:.0f} s are over", flush=True)
                continue
            try:
                print(time_row(row, device, steps=2 if small else 15), flush=True)
            except Exception:  # the next rows say something whatever went wrong with this one
                print(f"{row.name}: FAILED\n{traceback.format_exc()}", flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()


def time_row(row: Row, device: torch.device, *, steps: int) -> str:
    """One line: milliseconds a step, samples a second, memory, and the seconds it took to get going."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.monotonic()
    trainer = row.build()
    step = CapturedStep(partial(trainer.train_step, trainer.phases[0]), device, capture=row.capture)
    for _ in range(WARM_STEPS):
        step()
    synchronize(device)
    ready = time.monotonic() - started
    before = time.monotonic()
    for _ in range(steps):
        step()
    synchronize(device)
    each = (time.monotonic() - before) / steps
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    rate = row.samples / each
    return (
        f"{row.name:52s} {1000 * each:8.2f} ms/step {rate:8.0f} samples/s {row.flops * rate / 1e12:6.1f} TFLOP/s "
        f"{peak:5.1f} GiB, ready after {ready:.1f} s{'' if step.recorded or device.type != 'cuda' or not row.capture else ' (NO GRAPH)'}"
    )


def rows(device: torch.device, dtype: torch.dtype, folder: Path, *, small: bool) -> Iterator[Row]:
    """What is timed: first what needs no compiling, so that a short run says most."""
    widths = [(48, 2)] if small else [(320, 8), (384, 10)]
    batches = [2] if small else [256, 128, 512]
    on_gpu = device.type == "cuda"
    main, other = widths[0], widths[-1]

    def dit(width: tuple[int, int] = main, batch: int = batches[0], *, compiled: bool = on_gpu, **options: Any) -> Row:
        return _dit_row(device, dtype, folder, width, batch, compiled=compiled, small=small, **options)

    def vae(kind: str, *, compiled: bool = False, phase: int = 0) -> Row:
        return _vae_row(device, dtype, folder, kind, compiled=compiled, small=small, phase=phase)

    yield from (vae("2.2"), vae("2.1"), vae("2.2", phase=1), vae("2.2", phase=2))
    yield from (dit(compiled=False), dit(compiled=False, capture=False))
    yield from (dit(), dit(optimizer="adamw"))
    yield from (dit(batch=batch) for batch in batches[1:])
    yield from (dit(width=other), dit(attention="cudnn" if on_gpu else "auto"))
    yield from (vae("2.2", compiled=on_gpu), vae("2.1", compiled=on_gpu))


def _vae_row(
    device: torch.device, dtype: torch.dtype, folder: Path, kind: str, *, compiled: bool, small: bool, phase: int = 0
) -> Row:
    recipe = train_vae.RECIPES[kind]
    if small:
        recipe = replace(
            recipe,
            config=replace(recipe.config, base_dim=8, decoder_dim=8),
            size=ClipSize(frames=5, height=64, width=64),
            phases=(train_vae.CropPhase(side=32, batch=2, until=1.0),),
            num_scenes=64,
        )
    chosen = recipe.phases[phase if not small else 0]
    recipe = replace(recipe, phases=(replace(chosen, until=1.0),))

    def build() -> Trainer:
        training = train_vae.prepare(recipe, folder, device=device, dtype=dtype)
        return train_vae.trainer_of(training, TrainConfig(budget_steps=1000), compiled=compiled)

    what = f"{chosen.batch} crops of {chosen.side}" if chosen.side else f"{chosen.batch} whole clips"
    return Row(f"VAE {kind}, {what}{', compiled' if compiled else ''}", chosen.batch, build)


def _dit_row(
    device: torch.device,
    dtype: torch.dtype,
    folder: Path,
    width: tuple[int, int],
    batch: int,
    *,
    compiled: bool,
    small: bool,
    optimizer: str = "muon",
    attention: str = "auto",
    capture: bool = True,
) -> Row:
    dim, layers = width
    heads = max(1, dim // 64)
    shape: DiTConfig = replace(TI2V_NANO.dit, dim=dim, ffn_dim=4 * dim, num_heads=heads, num_layers=layers)
    spec = replace(TI2V_NANO, dit=shape)
    if small:
        spec = replace(spec, sizes=((64, 64),), num_frames=5)
    recipe = train_dit.DiTRecipe(
        spec=spec, mode="pinned", batch=batch, num_clips=512, attention=attention, optimizer=OptimizerConfig(kind=optimizer)
    )

    def build() -> Trainer:
        pool = random_pool(recipe, device, dtype)
        training = train_dit.prepare(recipe, pool, None, folder, dtype=dtype)
        return flow.trainer_of(training, TrainConfig(budget_steps=1000), compiled=compiled)

    options = [optimizer, *([attention] if attention != "auto" else []), *(["compiled"] if compiled else [])]
    options += [] if capture else ["no graph"]
    return Row(f"DiT {dim}x{layers}, batch {batch}, {', '.join(options)}", batch, build, float(recipe.training_flops()), capture)


def random_pool(recipe: train_dit.DiTRecipe, device: torch.device, dtype: torch.dtype) -> LatentPool:
    """A pool of noise and random tokens, in the shapes of the real one."""
    n, text_len = recipe.num_clips, recipe.spec.text.text_len
    ids = torch.randint(2, recipe.spec.text.vocab_size, (n, recipe.captions_per_clip, text_len), device=device, dtype=torch.int32)
    return LatentPool(
        latents=torch.randn(n, *recipe.latent_shape, device=device, dtype=dtype),
        ids=ids,
        lengths=torch.full(ids.shape[:2], min(16, text_len), device=device, dtype=torch.int32),
        empty_ids=ids[0, 0],
        empty_length=torch.ones((), device=device, dtype=torch.int32),
    )
