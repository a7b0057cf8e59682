"""Seconds and peak memory of one transformer forward at a published size, beside the same forward in diffusers.

    python benchmarks/dit_forward.py ti2v-5B --size 1280*704 --frames 121
    python benchmarks/dit_forward.py t2v-A14B --size 1280*720 --frames 81 --peer
    python benchmarks/dit_forward.py animate-14B --size 1280*720 --peer
    python benchmarks/dit_forward.py s2v-14B --size 1024*704

Weights are random (the time does not depend on them), parameters bfloat16, batch 1, inference mode, no compilation. Each
figure is the median of `--repeat` calls after one warm-up, timed with device events. `--peer` runs diffusers' transformer
of the same sizes with cuDNN attention in the same process, after ours is freed; it has none for s2v. What ours embeds once a
clip (faces, sound, motion) is no part of its forward; diffusers encodes the faces in each.
"""
from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from kinograph.checkpoints.layout import model_factory
from kinograph.config import MODELS, AnimateConfig, ModelSpec, S2VConfig
from kinograph.models.dit_animate import AnimateDiT
from kinograph.models.dit_s2v import Clip, S2VDiT
from kinograph.runtime.kernels import set_attention
from kinograph.tasks.plan import latent_shape
from kinograph.tasks.s2v_clips import MOTION_LATENTS

IMAGE_TOKENS = 257  # of the published image encoder


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
    shape = shape_of(spec, width, height, args.frames or spec.num_frames)
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, torch {torch.__version__}, {spec.name} {width}*{height}, latents {shape}", flush=True)
    with torch.inference_mode():
        report("kinograph", ours(spec, shape, attention=args.attention, pinned=args.pinned), args.repeat)
        torch.cuda.empty_cache()
        if args.peer:
            make = peer_animate if spec.task == "animate" else peer
            report("diffusers", make(spec, shape), args.repeat)


def shape_of(spec: ModelSpec, width: int, height: int, num_frames: int) -> tuple[int, ...]:
    """(channels, frames, rows, columns) of the latents that the transformer is given."""
    if spec.task == "s2v":
        return latent_shape(spec, width=width, height=height, num_frames=num_frames - 3)  # 4n frames, n latent ones
    channels, frames, *area = latent_shape(spec, width=width, height=height, num_frames=num_frames)
    return (channels, frames + (spec.task == "animate"), *area)  # the reference picture's is in front


def ours(spec: ModelSpec, shape: tuple[int, ...], *, attention: str, pinned: bool) -> Callable[[], torch.Tensor]:
    with torch.device("meta"):
        dit = model_factory(spec, spec.experts[0].name)()
    dit = randomise(dit.to(torch.bfloat16))
    dit, description = set_attention(dit, attention)
    print(f"attention: {description}")
    x, text, channels = inputs(spec, shape)
    t = torch.full((1, shape[1]) if pinned else (1,), 900.0, device="cuda")
    if pinned:
        t[:, 0] = 0.0
    if isinstance(dit, S2VDiT):
        given = dit.embed(spoken(dit.config, shape, text))
        return lambda: dit(x, t, **vars(given))
    if isinstance(dit, AnimateDiT):
        more = animated(dit, shape)
        return lambda: dit(x, t, text=text, channels=channels, **more)
    return lambda: dit(x, t, text=text, channels=channels)


def spoken(config: S2VConfig, shape: tuple[int, ...], text: torch.Tensor) -> Clip:
    """A clip that goes on from another."""
    channels, frames, *area = shape
    return Clip(
        text=text,
        audio=torch.randn(1, config.num_audio_layers, config.audio_dim, 4 * frames, device="cuda"),
        reference=torch.randn(1, channels, 1, *area, device="cuda"),
        motion=torch.randn(1, channels, MOTION_LATENTS, *area, device="cuda"),
    )


def animated(dit: AnimateDiT, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    channels, frames, *area = shape
    return {
        "pose": torch.randn(1, channels, frames - 1, *area, device="cuda"),
        "image": torch.randn(1, IMAGE_TOKENS, dit.config.dim, device="cuda"),
        "face": dit.face_tokens(torch.randn(1, 4 * (frames - 2) + 1, dit.config.motion_dim, device="cuda")),
    }


def peer_animate(spec: ModelSpec, shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
    from diffusers import WanAnimateTransformer3DModel

    dit = spec.dit
    assert isinstance(dit, AnimateConfig)
    with torch.device("meta"):
        model = WanAnimateTransformer3DModel(added_kv_proj_dim=dit.dim)  # its other defaults are the published sizes
    model = randomise(model.to(torch.bfloat16)).eval()
    model.rope = type(model.rope)(dit.head_dim, (1, 2, 2), 1024).cuda()
    model.set_attention_backend("_native_cudnn")
    x, text, channels = inputs(spec, shape)
    assert channels is not None
    num_channels, frames, *area = shape
    given = {
        "encoder_hidden_states": text,
        "encoder_hidden_states_image": torch.randn(1, IMAGE_TOKENS, dit.image_dim, device="cuda"),
        "pose_hidden_states": torch.randn(1, num_channels, frames - 1, *area, device="cuda"),
        "face_pixel_values": torch.randn(1, 3, 4 * (frames - 2) + 1, dit.face_size, dit.face_size, device="cuda"),
    }
    given = {name: tensor.bfloat16() for name, tensor in given.items()}
    x, t = torch.cat([x, channels], dim=1).bfloat16(), torch.full((1,), 900.0, device="cuda")
    return lambda: model(x, t, **given, return_dict=False)[0]


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
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.fill_(0.1)  # what they held was lost on the meta device
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
