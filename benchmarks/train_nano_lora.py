"""Trains a LoRA for `ti2v-nano` with peft, on a CPU in a few minutes: whatever is blue turns turquoise.

    python benchmarks/train_nano_lora.py tests/data/turquoise.safetensors

The clips are Toybox clips of blue objects painted turquoise, with their captions still saying blue. The file has the keys
that peft gives it. `tests/runtime/test_nano_lora.py` measures the effect in the video.
"""
from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file

from kinograph.models.t5 import encode_prompts
from kinograph.pipeline import load
from kinograph.sampling.schedule import NUM_TRAIN_TIMESTEPS, add_noise, sample_t
from kinograph.training import toybox
from kinograph.training.captions import caption

TURQUOISE = (0.10, 0.78, 0.74)
RANK = 4


@contextmanager
def repainted(color: str, rgb: tuple[float, float, float]) -> Iterator[None]:
    """Inside, what Toybox calls `color` is drawn in `rgb`, on the CPU."""
    row = toybox._tables(torch.device("cpu")).color[toybox.COLORS.index(color)]
    before = row.clone()
    row.copy_(torch.tensor(rgb))
    try:
        yield
    finally:
        row.copy_(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--lr", type=float, default=6e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    components = load("ti2v-nano")
    latents, text = material(components, args.clips)
    with components.place("all_noise") as dit:
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q", "k", "v", "o", "ffn.0", "ffn.2"])
        inject_adapter_in_model(config, dit)
        weights = [parameter for name, parameter in dit.named_parameters() if "lora_" in name]
        for parameter in weights:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(weights, lr=args.lr, weight_decay=0.0)
        began = time.monotonic()
        for step in range(args.steps):
            optimizer.param_groups[0]["lr"] = args.lr * min(1.0, (step + 1) / 5) * (1 - step / args.steps)
            rows = torch.randint(len(latents), (args.batch,))
            x0, noise, sigma = latents[rows], torch.randn(args.batch, *latents.shape[1:]), sample_t(args.batch, shift=5.0)
            velocity = dit(add_noise(x0, noise, sigma), NUM_TRAIN_TIMESTEPS * sigma, text[rows])
            loss = torch.nn.functional.mse_loss(velocity, noise - x0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 10 == 9:
                print(f"step {step + 1}: loss {loss.item():.4f}, {(time.monotonic() - began) / (step + 1):.1f} s a step", flush=True)
        state = {f"base_model.model.{name}": tensor.half() for name, tensor in get_peft_model_state_dict(dit).items()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, args.output)


@torch.no_grad()
def material(components, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [count, C, T, h, w] of turquoise clips and the embeddings [count, text_len, dim] of captions that say blue."""
    scenes = toybox.sample_scenes(8 * count, 11, second_rate=0.0, camera_rate=0.0, pattern_rate=0.0)
    blue = toybox.COLORS.index("blue")
    scenes = replace(scenes, color=torch.full_like(scenes.color, blue))[:count]
    rng = random.Random(0)
    prompts = [caption(scenes, row, rng, complete=True) for row in range(count)]
    with repainted("blue", TURQUOISE), components.place("vae") as vae:
        clips = (toybox.draw(scenes[row : row + 1], height=256, width=256, frames=17) for row in range(count))
        latents = torch.cat([vae.encode(clip) for clip in clips])
    with components.place("text_encoder") as encoder:
        text = encode_prompts(encoder, components.tokenizer, prompts).embeddings
    return latents, text


if __name__ == "__main__":
    main()
