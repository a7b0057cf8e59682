"""The whole path, prompt to frames: `load` a model, `generate` a video."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kinograph.config import MODELS, ModelSpec, RuntimeOptions
from kinograph.errors import RequestError
from kinograph.media.audio import Sound
from kinograph.media.colour import anchored, colours, joined
from kinograph.recipe import Recipe, describe_request
from kinograph.requests import SpeechToVideo, VideoRequest
from kinograph.runtime.embeddings import EmbeddingCache
from kinograph.runtime.lora import Lora
from kinograph.runtime.placement import Components, Parts, StageReport
from kinograph.sampling.conditioning import Conditioning
from kinograph.sampling.denoise import ExpertRun, StepEvent, denoise, initial_noise
from kinograph.sampling.presets import find_preset
from kinograph.sampling.solvers import make_solver
from kinograph.tasks import TASKS
from kinograph.tasks.inputs import Carry, ClipInputs, TextEmbeddings
from kinograph.tasks.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All there is to say of a finished run but its frames."""

    fps: float
    plan: Plan
    recipe: Recipe
    report: list[StageReport]
    notices: tuple[str, ...] = ()
    sound: Sound | None = None  # for the whole video


@dataclass(frozen=True, kw_only=True)
class Video(Outcome):
    """A finished video. `frames`: float32 [3, T, H, W] in [-1, 1] on the CPU."""

    frames: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A finished clip: what it adds to the video, float32 [3, T, H, W] in [-1, 1], and what the next one begins from."""

    index: int  # from 0
    frames: torch.Tensor
    carry: Carry


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has begun: what serves all its clips."""

    components: Components
    request: VideoRequest
    plan: Plan
    text: TextEmbeddings
    prepared: Any  # what the task's `prepare` made
    notices: tuple[str, ...]
    first_report: int  # where the stages of this run begin in the components' report

    def outcome(self) -> Outcome:
        """To be asked for when all clips are made: the stages so far are part of it."""
        return Outcome(
            fps=self.plan.fps,
            plan=self.plan,
            recipe=recipe_of(self.components, self.request, self.plan),
            report=self.components.report[self.first_report :],
            notices=self.notices,
            sound=getattr(self.prepared, "sound", None),
        )


def find_model(name: str) -> ModelSpec:
    """The row of the model table called `name`."""
    if name not in MODELS:
        raise RequestError(f"the model {name!r} is not known; choose one of {', '.join(MODELS)}")
    return MODELS[name]


def load(
    model: str | ModelSpec,
    folder: str | Path | None = None,
    *,
    options: RuntimeOptions | None = None,
    parts: Parts | None = None,
    lora: Lora | None = None,
) -> Components:
    """The components of a model, checked and ready to be placed; weights are read when they are first needed.

    `folder` is a checkpoint in the layout of the published models, of diffusers or of ComfyUI; models that ship with the
    package need none. `parts` replaces single models by files in any of their formats.
    """
    spec = find_model(model) if isinstance(model, str) else model
    return Components(spec, folder, options or RuntimeOptions(), parts=parts, transforms=() if lora is None else (lora,))


def plan(request: VideoRequest, spec: ModelSpec) -> Plan:
    """Every setting of the run, checked. Raises `RequestError`; reads no weights."""
    task = TASKS.get(type(request))
    if task is None:
        raise RequestError(f"there is no task for a {type(request).__name__}")
    return task.plan(completed(request), spec)


def completed(request: VideoRequest) -> VideoRequest:
    """`request` as its task takes it: with the speech of its text."""
    if not isinstance(request, SpeechToVideo):
        return request
    from kinograph.preprocess.speech import spoken

    return spoken(request)


def generate(
    components: Components,
    request: VideoRequest,
    *,
    plan: Plan | None = None,
    embeddings: EmbeddingCache | None = None,
    on_step: Callable[[StepEvent], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Video:
    """Makes the video of `request`.

    `on_step` is called after each denoising step and may raise `errors.Cancelled`; `on_stage` is told the name of each
    stage as it begins. `embeddings` shares embedded prompts between runs. The same request, seed, device and versions give
    the same frames.
    """
    run = begin(components, request, plan=plan, embeddings=embeddings, on_stage=on_stage)
    clips = [clip.frames for clip in make_clips(run, on_step=on_step, on_stage=on_stage)]
    return Video(**vars(run.outcome()), frames=clips[0] if len(clips) == 1 else torch.cat(clips, dim=1))


def begin(
    components: Components,
    request: VideoRequest,
    *,
    plan: Plan | None = None,
    embeddings: EmbeddingCache | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Run:
    """The first half of `generate`: everything that serves all clips."""
    task = TASKS[type(request)]
    complete = completed(request)
    plan = plan or task.plan(complete, components.spec)
    reported = len(components.report)  # stages of earlier runs with the same components
    _tell(on_stage, "text")
    text, notices = embed_text(components, request, plan, embeddings or EmbeddingCache(components))
    _tell(on_stage, "prepare")
    with components.stage("prepare"):
        prepared = task.prepare(components, complete, plan)
    return Run(
        components=components, request=request, plan=plan, text=text, prepared=prepared, notices=notices, first_report=reported
    )


def make_clips(
    run: Run,
    *,
    first: int = 0,
    carry: Carry | None = None,
    on_step: Callable[[StepEvent], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Iterator[Clip]:
    """The clips from number `first` on, each as soon as it is finished; `carry` is what the clip before `first` handed on."""
    components, plan = run.components, run.plan
    task = TASKS[type(run.request)]
    for clip in range(first, plan.num_clips):
        _tell(on_stage, "condition")
        with components.stage("condition"):
            inputs = task.condition(components, plan, run.text, run.prepared, clip, carry)
        _tell(on_stage, "denoise")
        with components.stage("denoise"), conditioned(components, inputs) as conditioning:
            solver = make_solver(plan.solver, num_steps=plan.num_steps, shift=plan.shift)
            latents = denoise(
                expert_runs(components, plan, solver.timesteps.tolist()),
                solver,
                noise_of_clip(components, plan, clip),
                conditioning,
                on_step=on_step,
            )
        _tell(on_stage, "decode")
        with components.stage("decode"):
            latents = latents[:, :, inputs.skip_latents :]
            video = decode(components, latents if inputs.lead is None else torch.cat([inputs.lead.to(latents), latents], dim=2))
        frames = finished(video, inputs, carry, plan)
        carry = next_carry(carry, frames, latents, plan)
        yield Clip(index=clip, frames=frames, carry=carry)


def finished(video: torch.Tensor, inputs: ClipInputs, carry: Carry | None, plan: Plan) -> torch.Tensor:
    """What a clip adds to the video [3, T, H, W], of all that was decoded for it, in the colours of the clips before."""
    joins = plan.smooth_joins and carry is not None and inputs.drop_frames > 0
    first = inputs.drop_frames - joins  # with the last frame of the clip before, as it was decoded once more
    frames = video[:, first:]
    if carry is not None and carry.anchor is not None:
        frames = anchored(frames, carry.anchor, plan.anchor)
    if joins and carry is not None:
        frames = joined(frames[:, 1:], before=carry.frames[:, -1], again=frames[:, 0])
    return frames[:, : inputs.keep_frames]


@contextmanager
def conditioned(components: Components, inputs: ClipInputs) -> Iterator[Conditioning]:
    """The conditioning of a clip. Where the transformer has to make it, that stays placed for the block."""
    if isinstance(inputs.conditioning, Conditioning):
        yield inputs.conditioning
        return
    with components.place(components.spec.experts[0].name) as model:
        yield inputs.conditioning(model)


def next_carry(carry: Carry | None, frames: torch.Tensor, latents: torch.Tensor, plan: Plan) -> Carry:
    """What is handed on after a clip of `frames` [3, T, H, W] and `latents` [1, z, T, h, w]."""
    before = [] if carry is None else [carry.frames]
    kept = None
    if plan.carry_latents:
        old = [] if carry is None or carry.latents is None else [carry.latents]
        kept = torch.cat([*old, latents[0].float().cpu()], dim=1)[:, -plan.carry_latents :].clone()
    anchor = (colours(frames) if carry is None else carry.anchor) if plan.anchor else None
    return Carry(frames=torch.cat([*before, frames], dim=1)[:, -plan.carry_frames :].clone(), latents=kept, anchor=anchor)


def _tell(on_stage: Callable[[str], None] | None, name: str) -> None:
    if on_stage is not None:
        on_stage(name)


def embed_text(
    components: Components, request: VideoRequest, plan: Plan, cache: EmbeddingCache
) -> tuple[TextEmbeddings, tuple[str, ...]]:
    """The embedded prompts on the device of the transformer, and notices about truncation."""
    with components.stage("text"):
        embedded = cache.embed([request.prompt.strip() or components.spec.default_prompt, plan.negative_prompt])
    embeddings = embedded.embeddings.to(components.device)
    notices = tuple(
        f"the {name} is too long by {dropped} tokens, which are ignored (the model reads {components.spec.text.text_len})"
        for name, dropped in zip(("prompt", "negative prompt"), embedded.dropped)
        if dropped
    )
    return TextEmbeddings(positive=embeddings[:1], negative=embeddings[1:]), notices


def noise_of_clip(components: Components, plan: Plan, clip: int) -> torch.Tensor:
    """[1, z, T, h, w] float32 standard normal noise on the device of the transformer."""
    if plan.one_noise_stream:  # drawn anew up to this clip: a resumed run must go on with the same numbers
        generator = torch.Generator(plan.noise_device).manual_seed(plan.seed)
        draws = (torch.randn(plan.latent_shape, generator=generator, device=plan.noise_device) for _ in range(clip + 1))
        noise = deque(draws, maxlen=1).pop()
    else:
        noise = initial_noise(plan.latent_shape, plan.clip_seed(clip), drawn_on=plan.noise_device)
    return noise[None].to(components.device)


def expert_runs(components: Components, plan: Plan, timesteps: Sequence[int]) -> list[ExpertRun]:
    """The experts of the model as the loop wants them: when each is responsible, how strongly guided, how to place it.

    An expert whose guidance, or strength of a LoRA, changes between `timesteps` is there once for each setting.
    """
    runs = [
        ExpertRun(
            name=expert.name,
            t_min=expert.t_min,
            guidance_scale=plan.guidance[expert.name],
            on_device=partial(components.place, expert.name),
        )
        for expert in components.spec.experts
    ]
    if plan.preset is not None:
        runs = find_preset(plan.preset).runs(runs, timesteps)
    for lora in loras_of(components):
        runs = lora.schedule(runs, timesteps)
    return runs


def loras_of(components: Components) -> list[Lora]:
    return [transform for transform in components.transforms if isinstance(transform, Lora)]


def decode(components: Components, latents: torch.Tensor) -> torch.Tensor:
    """Frames float32 [3, T, H, W] on the CPU; written chunk by chunk, so the device never holds the whole video."""
    stride_t, stride_h, stride_w = components.spec.vae.stride
    _, _, num_latents, rows, columns = latents.shape
    video = torch.empty(3, 1 + (num_latents - 1) * stride_t, rows * stride_h, columns * stride_w)
    done = 0
    with components.place("vae") as vae:
        for chunk in vae.decode_chunks(latents.to(components.vae_dtype)):
            video[:, done : done + chunk.shape[2]] = chunk[0]
            done += chunk.shape[2]
    return video


def recipe_of(components: Components, request: VideoRequest, plan: Plan) -> Recipe:
    """Everything needed to make the same video again."""
    return Recipe.now(
        model=components.spec.name,
        request=describe_request(replace(request, seed=plan.seed)),
        plan=plan,
        runtime=components.describe(),
        weights=components.fingerprints(),
        loras=[described for lora in loras_of(components) for described in lora.describe()],
    )
