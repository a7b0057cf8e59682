"""The whole path, prompt to frames: `load` a model, `generate` a video."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from kinograph.config import MODELS, ModelSpec, RuntimeOptions
from kinograph.errors import RequestError
from kinograph.recipe import Recipe, describe_request
from kinograph.requests import VideoRequest
from kinograph.runtime.embeddings import EmbeddingCache
from kinograph.runtime.lora import Lora
from kinograph.runtime.placement import Components, Parts, StageReport
from kinograph.sampling.denoise import ExpertRun, StepEvent, denoise, initial_noise
from kinograph.sampling.presets import find_preset
from kinograph.sampling.solvers import make_solver
from kinograph.tasks import TASKS
from kinograph.tasks.inputs import ClipStart, TextEmbeddings
from kinograph.tasks.plan import Plan


@dataclass(frozen=True)
class Video:
    """A finished video. `frames`: float32 [3, T, H, W] in [-1, 1] on the CPU."""

    frames: torch.Tensor
    fps: float
    plan: Plan
    recipe: Recipe
    report: list[StageReport]
    notices: tuple[str, ...] = ()


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
    return task.plan(request, spec)


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
    task = TASKS[type(request)]
    plan = plan or task.plan(request, components.spec)
    begin = on_stage or (lambda name: None)
    reported = len(components.report)  # stages of earlier runs with the same components

    begin("text")
    text, notices = embed_text(components, request, plan, embeddings or EmbeddingCache(components))
    clips: list[torch.Tensor] = []
    previous: ClipStart | None = None
    for clip in range(plan.num_clips):
        begin("condition")
        with components.stage("condition"):
            conditioning = task.condition(components, plan, text, task.start(request, plan, previous))
        begin("denoise")
        with components.stage("denoise"):
            solver = make_solver(plan.solver, num_steps=plan.num_steps, shift=plan.shift)
            latents = denoise(
                expert_runs(components, plan, solver.timesteps.tolist()),
                solver,
                noise_of_clip(components, plan, clip),
                conditioning,
                on_step=on_step,
            )
        begin("decode")
        with components.stage("decode"):
            frames = decode(components, latents)
        clips.append(frames if clip == 0 else frames[:, 1:])  # the first frame of a later clip is the one it continues
        previous = ClipStart(first=frames[:, -1])
    return Video(
        frames=clips[0] if len(clips) == 1 else torch.cat(clips, dim=1),
        fps=plan.fps,
        plan=plan,
        recipe=recipe_of(components, request, plan),
        report=components.report[reported:],
        notices=notices,
    )


def embed_text(
    components: Components, request: VideoRequest, plan: Plan, cache: EmbeddingCache
) -> tuple[TextEmbeddings, tuple[str, ...]]:
    """The embedded prompts on the device of the transformer, and notices about truncation."""
    with components.stage("text"):
        embedded = cache.embed([request.prompt, plan.negative_prompt])
    embeddings = embedded.embeddings.to(components.device)
    notices = tuple(
        f"the {name} is too long by {dropped} tokens, which are ignored (the model reads {components.spec.text.text_len})"
        for name, dropped in zip(("prompt", "negative prompt"), embedded.dropped)
        if dropped
    )
    return TextEmbeddings(positive=embeddings[:1], negative=embeddings[1:]), notices


def noise_of_clip(components: Components, plan: Plan, clip: int) -> torch.Tensor:
    """[1, z, T, h, w] float32 standard normal noise on the device of the transformer."""
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
