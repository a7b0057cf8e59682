"""Seconds and peak memory of one transformer forward at a published size, beside the same forward in diffusers.

    python benchmarks/dit_forward.py ti2v-5B --size 1280*704 --frames 121
    python benchmarks/dit_forward.py t2v-A14B --size 1280*720 --frames 81 --peer

Weights are random (the time does not depend on them), parameters bfloat16, batch 1, inference mode, no compilation. Each
figure is the median of `--repeat` calls after one warm-up, timed with device events. `--peer` runs diffusers' transformer
of the same sizes with cuDNN attention in the same process, after ours is freed.
"""
from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from kinograph.config import MODELS, ModelSpec
from kinograph.models.dit import DiT
from kinograph.runtime.kernels import set_attention
from kinograph.tasks.plan import latent_shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--size", default=None)
    parser.add_argument("--frames", type=int, default=None)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--pinned", action="store_true", help="a timestep per latent frame, as with a given first picture")
    parser.add_argument("--peer", action="store_true")
    args = parser.parse_args()
    spec = MODELS[args.model]
    width, height = map(int, args.size.split("*")) if args.size else spec.sizes[0]
    shape = latent_shape(spec, width=width, height=height, num_frames=args.frames or spec.num_frames)
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, torch {torch.__version__}, {spec.name} {width}*{height}, latents {shape}", flush=True)
    with torch.inference_mode():
        report("kinograph", ours(spec, shape, attention=args.attention, pinned=args.pinned), args.repeat)
        torch.cuda.empty_cache()
        if args.peer:
            report("diffusers", peer(spec, shape), args.repeat)


def ours(spec: ModelSpec, shape: tuple[int, ...], *, attention: str, pinned: bool) -> Callable[[], torch.Tensor]:
    with torch.device("meta"):
        dit = DiT(spec.dit)
    dit = randomise(dit.to(torch.bfloat16))
    dit, description = set_attention(dit, attention)
    print(f"attention: {description}")
    x, text, channels = inputs(spec, shape)
    t = torch.full((1, shape[1]) if pinned else (1,), 900.0, device="cuda")
    if pinned:
        t[:, 0] = 0.0
    return lambda: dit(x, t, text=text, channels=channels)


def peer(spec: ModelSpec, shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
    from diffusers import WanTransformer3DModel

    dit = spec.dit
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=dit.num_heads,
            attention_head_dim=dit.head_dim,
            in_channels=dit.in_dim,
            out_channels=dit.out_dim,
            ffn_dim=dit.ffn_dim,
            num_layers=dit.num_layers,
            cross_attn_norm=True,
        )
    model = randomise(model.to(torch.bfloat16)).eval()
    model.rope = type(model.rope)(dit.head_dim, (1, 2, 2), 1024).cuda()  # its tables are buffers, lost on the meta device
    model.set_attention_backend("_native_cudnn")
    x, text, channels = inputs(spec, shape)
    x = (x if channels is None else torch.cat([x, channels], dim=1)).bfloat16()
    text = text.bfloat16()
    t = torch.full((1,), 900.0, device="cuda")
    return lambda: model(x, t, text, return_dict=False)[0]


def inputs(spec: ModelSpec, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x = torch.randn(1, *shape, device="cuda")
    text = torch.randn(1, spec.dit.text_len, spec.dit.text_dim, device="cuda")
    extra = spec.dit.in_dim - spec.dit.out_dim
    return x, text, torch.randn(1, extra, *shape[1:], device="cuda") if extra else None


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """`module` from the meta device onto the GPU, with random weights that keep activations finite."""
    module = module.to_empty(device="cuda")
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.5 / parameter[0].numel() ** 0.5)
        else:
            parameter.fill_(0.5)
    return module


def report(name: str, call: Callable[[], torch.Tensor], repeat: int) -> None:
    torch.cuda.reset_peak_memory_stats()
    finite = bool(torch.isfinite(call()).all())
    seconds = []
    for _ in range(repeat):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        seconds.append(start.elapsed_time(stop) / 1e3)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(
        f"{name:10s} median {statistics.median(seconds):.3f} s (min {min(seconds):.3f}, max {max(seconds):.3f}), "
        f"peak {peak:.2f} GiB, finite {finite}",
        flush=True,
    )


if __name__ == "__main__":
    main()
