"""A job to a file: plan, place of the file, weights, prompt extension, video, writing.

Everything that can be refused is refused before any weight is read: request, pictures, the place of the file, the folder of
the weights, the LoRA files, in this order.
"""
from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinograph.cli.arguments import GENERATE_FLAGS
from kinograph.cli.job import Job, Setup
from kinograph.cli.progress import Progress
from kinograph.cli.sizes import GIB
from kinograph.config import ModelSpec
from kinograph.errors import CheckpointError, MediaError, RequestError

if TYPE_CHECKING:
    from kinograph.pipeline import Video
    from kinograph.preprocess.prompts import PromptExtender
    from kinograph.requests import VideoRequest
    from kinograph.runtime.embeddings import EmbeddingCache
    from kinograph.runtime.placement import Components, StageReport
    from kinograph.tasks.plan import Plan

FLAG_OF_FIELD = {
    name.removeprefix("request."): flag.name for flag in GENERATE_FLAGS for name in flag.fills if name != f"request.{flag.name}"
}


def carry_out(job: Job, progress: Progress, *, check: Callable[[Components], None] = lambda components: None) -> Path:
    """Makes the video, writes it, says so, and returns its path.

    `check` sees the components before any weight is read; it may raise, or say something.
    """
    plan = planned(job.request, job.setup.spec)
    target = output_path(job, plan)
    extender = make_extender(job.setup)
    components = load(job.setup, plan, progress)
    check(components)
    for warning in plan.warnings:
        progress.notice(warning)
    if extender is not None:
        with extender:
            job = extended(job, plan, extender, progress)
    video = generated(job, plan, components, progress)
    facts, summary = written(job, video, components, target, progress)
    progress.result(facts, summary)
    return Path(facts["path"])


# ------------------------------------------------------------------------------------------------------- beforehand


def planned(request: VideoRequest, spec: ModelSpec) -> Plan:
    """The plan of the request. A refusal that begins with the name of a field has the flag for it, too."""
    from kinograph import pipeline

    try:
        return pipeline.plan(request, spec)
    except RequestError as error:
        raise RequestError(re.sub(r"^\w+", _with_flag, str(error), count=1)) from None


def _with_flag(match: re.Match[str]) -> str:
    return f"{match[0]} (--{FLAG_OF_FIELD[match[0]]})" if match[0] in FLAG_OF_FIELD else match[0]


def output_path(job: Job, plan: Plan) -> str:
    """Where the file goes, checked: the format, the folder, and that nothing is overwritten unasked.

    What the user wrote comes back as it is, because a slash at its end tells a folder from a file.
    """
    from kinograph.media import check_writable, unique_path

    if job.save_file is None:
        path = unique_path(Path(job.output_dir or ".") / _made_name(job, plan))
        check_writable(path)
        return str(path)
    path = Path(job.save_file)
    is_folder = _means_folder(job.save_file) or path.is_dir()
    if path.suffix.lower() == ".png" and not is_folder and plan.total_frames != 1:
        raise MediaError(
            f"{path} holds one frame and the video has {plan.total_frames}; "
            "use --frame_num 1, or a name without a suffix for a folder of PNGs"
        )
    check_writable(job.save_file)
    if not job.overwrite and unique_path(path) != path:
        raise MediaError(f"{path} exists already; add --overwrite to replace it, or choose another name, such as {unique_path(path).name}")
    return job.save_file


def _made_name(job: Job, plan: Plan) -> str:
    from kinograph.media import default_name

    model, prompt = job.setup.spec.name, job.request.prompt
    return default_name(model, width=plan.width, height=plan.height, prompt=prompt, time=datetime.now(), suffix=suffix_of(plan))


def suffix_of(plan: Plan) -> str:
    """Of a name made here: a single frame is a picture."""
    return ".png" if plan.total_frames == 1 else ".mp4"


def _means_folder(target: str) -> bool:
    return target.endswith(("/", os.sep))


def load(setup: Setup, plan: Plan, progress: Progress) -> Components:
    """The components, every file of theirs checked; `plan` says how many steps a few-step preset has."""
    from kinograph import pipeline
    from kinograph.runtime.lora import Lora, with_preset
    from kinograph.sampling.presets import find_preset

    loras = list(setup.loras)
    if plan.preset is not None:
        loras = with_preset(loras, find_preset(plan.preset), plan.num_steps)
    folder = weights_folder(setup)
    lora = Lora(setup.spec, loras, mode=setup.lora_mode, ignore_unmatched=setup.lora_ignore_unmatched) if loras else None
    for note in lora.notes if lora else ():
        progress.notice(note)
    return pipeline.load(setup.spec, folder, options=setup.options, parts=setup.parts, lora=lora)


def weights_folder(setup: Setup) -> str | Path | None:
    """The folder that was given, or the one in the cache of a hub; None where neither is needed."""
    if setup.folder is not None or setup.spec.bundled:
        return setup.folder
    from kinograph.checkpoints.download import find_cached

    cached = find_cached(setup.spec)
    if cached is None and not setup.parts:
        name, hub = setup.spec.name, setup.spec.hub
        raise CheckpointError(
            f"the weights of {name} are not on this machine; give their folder with --ckpt_dir"
            + (f", or fetch {hub} with: kinograph download {name}" if hub else "")
        )
    return cached


# ------------------------------------------------------------------------------------------------- prompt extension


def make_extender(setup: Setup) -> PromptExtender | None:
    """What extends prompts, checked; nothing is loaded or sent yet."""
    if setup.extension is None:
        return None
    from kinograph.preprocess.prompts import PromptExtender

    asked = setup.extension
    return PromptExtender(method=asked.method, model=asked.model, language=asked.language, device=setup.options.device)


def extended(job: Job, plan: Plan, extender: PromptExtender, progress: Progress) -> Job:
    """`job` with the extended prompt, which is shown; or as it was, with the reason shown."""
    progress.stage("extend")
    image = getattr(job.request, "image", None)
    result = extender(job.request.prompt, task=job.setup.spec.task, image=image, seed=plan.seed)
    if result.notice is not None:
        progress.notice(result.notice)
        return job
    progress.notice(f"the prompt as extended by {result.model}: {result.prompt}")
    record = {"original": result.original, "method": result.method, "model": result.model, "language": extender.language}
    return replace(job, request=replace(job.request, prompt=result.prompt), extended=record)


# ------------------------------------------------------------------------------------------------------------ video


def generated(
    job: Job, plan: Plan, components: Components, progress: Progress, *, embeddings: EmbeddingCache | None = None
) -> Video:
    """The video, with all that the recipe is to hold."""
    from kinograph import pipeline

    video = pipeline.generate(
        components, job.request, plan=plan, embeddings=embeddings, on_step=progress.step, on_stage=progress.stage
    )
    for notice in video.notices:
        progress.notice(notice)
    return replace(video, recipe=replace(video.recipe, prompt_extension=job.extended))


def written(job: Job, video: Video, components: Components, target: str, progress: Progress) -> tuple[dict[str, Any], str]:
    """Writes the video to `target`; (facts for machines, summary for people)."""
    progress.stage("write")
    began = time.monotonic()
    path = write(video, target, overwrite=job.overwrite)
    return closing(video, path, write_seconds=time.monotonic() - began, notes=components.notes)


def write(video: Video, target: str, *, overwrite: bool) -> Path:
    """Writes the video and returns its path. If that fails, the work is kept in the temporary folder, and the error says where."""
    from kinograph.media import to_uint8, unique_path, write_video

    frames = to_uint8(video.frames)
    metadata = video.recipe.to_json()
    try:
        return write_video(target, frames, video.fps, metadata=metadata, overwrite=overwrite)
    except MediaError as error:
        refuge = str(unique_path(Path(tempfile.gettempdir()) / Path(target).name)) + ("/" if _means_folder(target) else "")
        try:
            kept = write_video(refuge, frames, video.fps, metadata=metadata)
        except MediaError:
            raise error from None
        raise MediaError(f"{error}; the finished video was saved as {kept} instead") from error


def closing(video: Video, path: Path, *, write_seconds: float, notes: Sequence[str]) -> tuple[dict[str, Any], str]:
    """(facts for machines, summary for people) of a finished run."""
    plan = video.plan
    stages = [
        {name: round(value, 3) if isinstance(value, float) else value for name, value in dataclasses.asdict(stage).items()}
        for stage in video.report
    ]
    facts = {
        "path": str(path),
        "model": plan.model,
        "prompt": video.recipe.request["prompt"],
        "seed": plan.seed,
        "width": plan.width,
        "height": plan.height,
        "num_frames": plan.total_frames,
        "fps": video.fps,
        "stages": stages,
        "write_seconds": round(write_seconds, 3),
        "notes": list(notes),
    }
    lines = [f"{path}: {plan.width}*{plan.height}, {plan.total_frames} frames at {video.fps:g} fps, seed {plan.seed}"]
    lines += [f"  {stage.stage:<10} {stage.seconds:8.1f} s{_memory(stage)}" for stage in video.report]
    lines.append(f"  {'write':<10} {write_seconds:8.1f} s")
    lines += [f"  {note}" for note in notes]
    return facts, "\n".join(lines)


def _memory(stage: StageReport) -> str:
    loading = f", {stage.load_seconds:.1f} s of it loading" if stage.load_seconds >= 0.05 else ""
    device = f", peak {stage.peak_device_bytes / GIB:.1f} GiB on the device" if stage.peak_device_bytes else ""
    host = f", {stage.host_rss_bytes / GIB:.1f} GiB of main memory" if stage.host_rss_bytes else ""
    return loading + device + host
