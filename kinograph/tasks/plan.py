"""What will be done: a request checked against a model, with every default filled in.

A plan is made before any weight is loaded; whatever is wrong with a request is said here.
"""
from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from kinograph.config import ModelSpec
from kinograph.errors import RequestError
from kinograph.requests import VideoRequest
from kinograph.sampling.presets import find_preset
from kinograph.sampling.solvers import SOLVERS

MAX_ASPECT = 8  # longer side over shorter; training material stays under 2
MAX_STEPS = 1000  # one per training timestep


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every setting of a run, complete; sizes in pixels, JSON-able."""

    model: str
    width: int
    height: int
    num_frames: int  # of one clip
    num_clips: int
    total_frames: int  # of the result
    num_steps: int
    shift: float
    guidance: dict[str, float]  # expert name -> scale
    solver: str
    seed: int
    fps: float
    negative_prompt: str
    noise_device: str
    latent_shape: tuple[int, int, int, int]  # (channels, frames, rows, columns) of one clip
    carry_frames: int = 1  # frames that a clip hands to the next
    carry_latents: int = 0  # latent frames, likewise
    one_noise_stream: bool = False  # clips draw their noise one after the other from one generator, not from seeds of their own
    anchor: float = 0.0  # how far later clips are pulled towards the colours of the first, in 0..1
    smooth_joins: bool = False  # later clips begin in the colours that the clip before ended in
    preset: str | None = None
    warnings: tuple[str, ...] = ()

    def clip_seed(self, clip: int) -> int:
        """The seed of a clip's own noise; the first one uses the seed itself."""
        return (self.seed + clip) % (sys.maxsize + 1)


def make_plan(
    request: VideoRequest,
    spec: ModelSpec,
    *,
    width: int,
    height: int,
    num_clips: int = 1,
    num_frames: int | None = None,
    latent_frames: int | None = None,
    total_frames: int | None = None,
    carry_frames: int = 1,
    carry_latents: int = 0,
    one_noise_stream: bool = False,
    anchor: float = 0.0,
    smooth_joins: bool = False,
    warnings: tuple[str, ...] = (),
) -> Plan:
    """`request` with the defaults of `spec`, for frames of `width` x `height`.

    `num_frames`, of one clip, is checked by the task if it gives it. `latent_frames` of its noise default to what the VAE
    makes of them, `total_frames` to clips that each repeat the last frame of the clip before.
    Raises `RequestError` for anything that the model cannot do.
    """
    if not spec.available:
        raise RequestError(f"the model {spec.name} is not supported by this version; `kinograph models` lists those that are")
    if request.preset is not None:
        request = find_preset(request.preset).fill(request)
    num_frames = _frames(request, spec) if num_frames is None else num_frames
    num_clips = _whole("num_clips", num_clips, low=1)
    if not 0 <= anchor <= 1:
        raise RequestError(f"anchor must be from 0 (off) to 1; got {anchor}")
    shape = latent_shape(spec, width=width, height=height, num_frames=num_frames)
    solver = request.solver or spec.solver
    if solver not in SOLVERS:
        raise RequestError(f"solver {solver!r} is not known; choose one of {', '.join(SOLVERS)}")
    return Plan(
        model=spec.name,
        width=width,
        height=height,
        num_frames=num_frames,
        num_clips=num_clips,
        total_frames=num_frames + (num_clips - 1) * (num_frames - 1) if total_frames is None else total_frames,
        num_steps=_whole("num_steps", request.num_steps if request.num_steps is not None else spec.num_steps, low=1, high=MAX_STEPS),
        shift=_shift(request, spec),
        guidance=_guidance(request, spec),
        solver=solver,
        seed=draw_seed(request.seed),
        fps=_fps(request, spec),
        negative_prompt=spec.default_negative_prompt if request.negative_prompt is None else request.negative_prompt,
        noise_device=_noise_device(request),
        latent_shape=shape if latent_frames is None else (shape[0], latent_frames, *shape[2:]),
        carry_frames=carry_frames,
        carry_latents=carry_latents,
        one_noise_stream=one_noise_stream,
        anchor=anchor,
        smooth_joins=smooth_joins and num_clips > 1,
        preset=request.preset,
        warnings=(*_outside_training(spec, width, height, num_frames), *warnings),
    )


def require_prompt(request: VideoRequest) -> None:
    """Text tasks have nothing to go by but the prompt."""
    if not request.prompt.strip():
        raise RequestError('the prompt is empty; say what the video should show, for example: --prompt "a red ball rolls to the right"')


def requested_size(request: VideoRequest, spec: ModelSpec) -> tuple[int, int]:
    """(width, height) as asked, or the model's first training size."""
    if (request.width is None) != (request.height is None):
        raise RequestError(f"give both width and height, or neither; got width {request.width} and height {request.height}")
    width, height = spec.sizes[0] if request.width is None or request.height is None else (request.width, request.height)
    return _whole("width", width, low=1), _whole("height", height, low=1)


def exact_size(request: VideoRequest, spec: ModelSpec) -> tuple[int, int]:
    """(width, height) for tasks that take the size literally: both must be whole numbers of tokens."""
    width, height = requested_size(request, spec)
    multiple_h, multiple_w = spec.size_multiple
    if width % multiple_w or height % multiple_h:
        nearest_w, nearest_h = _nearest_multiple(width, multiple_w), _nearest_multiple(height, multiple_h)
        raise RequestError(
            f"{spec.name} needs a width that is a multiple of {multiple_w} and a height that is a multiple of {multiple_h}; "
            f"got {width}*{height} (nearest: {nearest_w}*{nearest_h})"
        )
    return width, height


def check_aspect(width: int, height: int) -> None:
    """Refuses pictures so thin that a frame of their aspect would be a few tokens wide."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        ratio = max(width, height) / min(width, height)
        raise RequestError(
            f"the picture is {width}x{height}, an aspect ratio of {ratio:.1f}:1; the models can do up to {MAX_ASPECT}:1: crop it"
        )


def latent_shape(spec: ModelSpec, *, width: int, height: int, num_frames: int) -> tuple[int, int, int, int]:
    """(channels, frames, rows, columns) of the latents of one clip."""
    return (spec.vae.z_dim, *spec.vae.latent_size(num_frames=num_frames, height=height, width=width))


def draw_seed(seed: int) -> int:
    """`seed`, or a random one where it is negative."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RequestError(f"seed must be a whole number (-1 draws one); got {seed!r}")
    if seed > sys.maxsize:
        raise RequestError(f"seed must be at most {sys.maxsize}; got {seed}")
    return seed if seed >= 0 else random.SystemRandom().randint(0, sys.maxsize)


def _frames(request: VideoRequest, spec: ModelSpec) -> int:
    frames = _whole("num_frames", request.num_frames if request.num_frames is not None else spec.num_frames, low=1)
    stride = spec.vae.stride[0]
    if (frames - 1) % stride:
        below = 1 + (frames - 1) // stride * stride
        raise RequestError(f"num_frames must be {stride}n+1 for this VAE; got {frames} (nearest: {below}, {below + stride})")
    return frames


def _shift(request: VideoRequest, spec: ModelSpec) -> float:
    shift = spec.shift if request.shift is None else request.shift
    if not (math.isfinite(shift) and shift > 0):
        raise RequestError(f"shift must be a positive number; got {shift} (the default of {spec.name} is {spec.shift})")
    return float(shift)


def _guidance(request: VideoRequest, spec: ModelSpec) -> dict[str, float]:
    names = [expert.name for expert in spec.experts]
    defaults = {expert.name: expert.guidance_scale for expert in spec.experts}
    asked = request.guidance_scale
    if asked is None:
        return defaults
    if not isinstance(asked, Mapping):
        asked = dict.fromkeys(names, asked)
    unknown = [name for name in asked if name not in defaults]
    if unknown:
        raise RequestError(f"{spec.name} has no expert {unknown[0]!r} to guide; its experts are {', '.join(names)}")
    scales = {name: float(scale) for name, scale in (defaults | dict(asked)).items()}
    for name, scale in scales.items():
        if not (math.isfinite(scale) and scale >= 0):
            raise RequestError(f"guidance_scale must be a number of at least 0; got {scale} for {name}")
    return scales


def _fps(request: VideoRequest, spec: ModelSpec) -> float:
    fps = spec.fps if request.fps is None else request.fps
    if not 0 < fps <= 240:
        raise RequestError(f"fps must be above 0 and at most 240; got {fps}")
    return fps


def _noise_device(request: VideoRequest) -> str:
    if request.noise_device not in ("cpu", "cuda"):
        raise RequestError(f"noise_device must be 'cpu' (the same noise everywhere) or 'cuda'; got {request.noise_device!r}")
    return request.noise_device


def _outside_training(spec: ModelSpec, width: int, height: int, num_frames: int) -> tuple[str, ...]:
    warnings = []
    # Image tasks keep the picture's aspect at the area of a training size, so the area is what is compared.
    areas = [w * h for w, h in spec.sizes]
    if not any(0.9 * area <= width * height <= 1.1 * area for area in areas):
        sizes = ", ".join(f"{w}*{h}" for w, h in spec.sizes)
        warnings.append(f"{width}*{height} is outside the sizes {spec.name} was trained on ({sizes}); quality may suffer")
    if num_frames != spec.num_frames:
        warnings.append(f"{num_frames} frames is not the length {spec.name} was trained on ({spec.num_frames}); quality may suffer")
    return tuple(warnings)


def _whole(name: str, value: int, *, low: int, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise RequestError(f"{name} must be a whole number {limits}; got {value!r}")
    return value


def _nearest_multiple(value: int, multiple: int) -> int:
    return max(multiple, round(value / multiple) * multiple)
