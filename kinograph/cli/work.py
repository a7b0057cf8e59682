"""A job to a file: plan, place of the file, weights, prompt extension, video, writing.

Everything that can be refused is refused before any weight is read: request, pictures, the place of the file, the folder of
the weights, the LoRA files, in this order.
"""
from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinograph.cli.arguments import GENERATE_FLAGS
from kinograph.cli.clips import ClipFolder
from kinograph.cli.job import Job, Setup
from kinograph.cli.progress import Progress
from kinograph.cli.sizes import GIB
from kinograph.config import ModelSpec
from kinograph.errors import CheckpointError, MediaError, RequestError

if TYPE_CHECKING:
    import torch

    from kinograph.pipeline import Outcome
    from kinograph.preprocess.prompts import PromptExtender
    from kinograph.requests import VideoRequest
    from kinograph.runtime.embeddings import EmbeddingCache
    from kinograph.runtime.placement import Components, StageReport
    from kinograph.tasks.plan import Plan

class NotWritten(MediaError):
    """A finished video that could not be written under its name."""


FLAG_OF_FIELD = {
    name.removeprefix("request."): flag.name for flag in GENERATE_FLAGS for name in flag.fills if name != f"request.{flag.name}"
}


def carry_out(job: Job, progress: Progress, *, check: Callable[[Components], None] = lambda components: None) -> Path:
    """Makes the video, writes it, says so, and returns its path.

    `check` sees the components before any weight is read; it may raise, or say something.
    """
    job = as_recorded(job)
    plan = planned(job.request, job.setup.spec)
    target = output_path(job, plan)
    check_clips(job, plan, target)
    extender = None if job.extended else make_extender(job.setup)
    components = load(job.setup, plan, progress)
    check(components)
    for warning in plan.warnings:
        progress.notice(warning)
    if extender is not None:
        with extender:
            job = extended(job, plan, extender, progress)
    facts, summary = made(job, plan, components, target, progress)
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
    from kinograph.runtime.lora import Lora, relighting_lora, with_preset
    from kinograph.runtime.placement import bundled_folder
    from kinograph.sampling.presets import find_preset

    loras = list(setup.loras)
    if plan.preset is not None:
        loras = with_preset(loras, find_preset(plan.preset), plan.num_steps)
    folder = weights_folder(setup)
    if setup.relighting:
        loras.append(relighting_lora(bundled_folder(setup.spec) if folder is None else folder))
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


def made(
    job: Job, plan: Plan, components: Components, target: str, progress: Progress, *, embeddings: EmbeddingCache | None = None
) -> tuple[dict[str, Any], str]:
    """Makes the video and writes it to `target`; (facts for machines, summary for people)."""
    from kinograph import pipeline
    from kinograph.media import to_uint8

    if plan.num_clips > 1:
        return made_of_clips(job, plan, components, target, progress, embeddings=embeddings)
    video = pipeline.generate(
        components, job.request, plan=plan, embeddings=embeddings, on_step=progress.step, on_stage=progress.stage
    )
    frames = to_uint8(video.frames)
    return written(video, lambda: [frames], components, job, target, progress)


def made_of_clips(
    job: Job, plan: Plan, components: Components, target: str, progress: Progress, *, embeddings: EmbeddingCache | None = None
) -> tuple[dict[str, Any], str]:
    """The same for a video of several clips, each of which is kept as soon as it is finished."""
    from kinograph import pipeline
    from kinograph.media.drift import describe_drift, measure_drift

    folder = ClipFolder.beside(target)
    facts = clip_facts(job, plan, components)
    done, carry = folder.resume(facts) if wants_resume(job, folder, facts) else (0, None)
    if not done:
        folder.begin(facts)
    try:
        run = pipeline.begin(components, job.request, plan=plan, embeddings=embeddings, on_stage=progress.stage)
        for clip in pipeline.make_clips(run, first=done, carry=carry, on_step=progress.step, on_stage=progress.stage):
            folder.add(clip, plan.fps)
            done = clip.index + 1
            progress.notice(f"clip {done} of {plan.num_clips} is finished")
    except BaseException:
        if done:
            progress.notice(f"{done} of {plan.num_clips} clips are kept in {folder.folder}; go on with: -o {target} --resume")
        else:
            folder.remove()
        raise
    drift = measure_drift(folder.frames(plan.num_clips))
    facts, summary = written(run.outcome(), lambda: folder.frames(plan.num_clips), components, job, target, progress)
    folder.remove()
    return {**facts, "drift": [dataclasses.asdict(each) for each in drift]}, f"{summary}\n  {describe_drift(drift)}"


def as_recorded(job: Job) -> Job:
    """A job to be gone on with, with what was decided when it began: a drawn seed, an extended prompt."""
    if not job.resume:
        return job
    if job.save_file is None:
        raise RequestError("--resume goes on with a video, so it needs its name: add -o FILE")
    recorded = ClipFolder.beside(job.save_file).recorded()
    if recorded is None:
        return job  # `check_clips` says so
    request = replace(job.request, seed=recorded["plan"]["seed"]) if job.request.seed < 0 else job.request
    if job.setup.extension is not None and recorded["extended"]:
        return replace(job, request=replace(request, prompt=recorded["request"]["prompt"]), extended=recorded["extended"])
    return replace(job, request=request)


def check_clips(job: Job, plan: Plan, target: str) -> None:
    """Refuses to lose the clips of an unfinished run, and to go on where there is nothing to go on with."""
    if plan.num_clips == 1:
        if job.resume:
            raise RequestError("--resume goes on with a video of several clips; this one has a single clip: leave --resume out")
        return
    folder = ClipFolder.beside(target)
    recorded = folder.recorded()
    if job.resume and recorded is None:
        raise MediaError(f"there is nothing to go on with: {folder.folder} does not exist; leave --resume out")
    if recorded is not None and not job.resume and not job.overwrite:
        raise MediaError(f"{folder.folder} holds clips of an unfinished video; add --resume to go on with it, or --overwrite to start anew")


def wants_resume(job: Job, folder: ClipFolder, facts: dict[str, Any]) -> bool:
    """Whether to go on: as asked, or, where nothing was said, if the clips that are there are this very run's."""
    return job.resume if job.resume is not None else folder.recorded() == json.loads(json.dumps(facts))


def clip_facts(job: Job, plan: Plan, components: Components) -> dict[str, Any]:
    """What makes a run the same run."""
    from kinograph.pipeline import loras_of
    from kinograph.recipe import describe, describe_request

    return {
        "model": components.spec.name,
        "request": describe_request(replace(job.request, seed=plan.seed)),
        "plan": describe(plan),
        "extended": dict(job.extended),
        "weights": components.fingerprints(),
        "loras": [described for lora in loras_of(components) for described in lora.describe()],
    }


Frames = Callable[[], Iterable["torch.Tensor"]]
"""The frames of a video, uint8 [T, H, W, 3] each, as often as they are asked for."""


def written(
    outcome: Outcome, frames: Frames, components: Components, job: Job, target: str, progress: Progress
) -> tuple[dict[str, Any], str]:
    """Writes the video to `target`; (facts for machines, summary for people)."""
    from kinograph.media import holds_sound

    for notice in outcome.notices:
        progress.notice(notice)
    if outcome.sound is not None and not holds_sound(target):
        progress.notice(f"{target} cannot hold the sound and stays silent; .mp4, .mov and .webm can")
    progress.stage("write")
    began = time.monotonic()
    recipe = replace(outcome.recipe, prompt_extension=job.extended)
    path = write(replace(outcome, recipe=recipe), frames, target, overwrite=job.overwrite)
    return closing(outcome, path, write_seconds=time.monotonic() - began, notes=components.notes)


def write(outcome: Outcome, frames: Frames, target: str, *, overwrite: bool) -> Path:
    """Writes the video and returns its path. If that fails, the work is kept in the temporary folder, and the error says where."""
    from kinograph.media import unique_path, write_video

    metadata = outcome.recipe.to_json()
    try:
        return write_video(target, frames(), outcome.fps, metadata=metadata, sound=outcome.sound, overwrite=overwrite)
    except MediaError as error:
        refuge = str(unique_path(Path(tempfile.gettempdir()) / Path(target).name)) + ("/" if _means_folder(target) else "")
        try:
            kept = write_video(refuge, frames(), outcome.fps, metadata=metadata, sound=outcome.sound)
        except MediaError:
            raise NotWritten(str(error)) from error
        raise NotWritten(f"{error}; the finished video was saved as {kept} instead") from error


def closing(outcome: Outcome, path: Path, *, write_seconds: float, notes: Sequence[str]) -> tuple[dict[str, Any], str]:
    """(facts for machines, summary for people) of a finished run."""
    plan = outcome.plan
    stages = [
        {name: round(value, 3) if isinstance(value, float) else value for name, value in dataclasses.asdict(stage).items()}
        for stage in outcome.report
    ]
    facts = {
        "path": str(path),
        "model": plan.model,
        "prompt": outcome.recipe.request["prompt"],
        "seed": plan.seed,
        "width": plan.width,
        "height": plan.height,
        "num_frames": plan.total_frames,
        "fps": outcome.fps,
        "stages": stages,
        "write_seconds": round(write_seconds, 3),
        "notes": list(notes),
    }
    lines = [f"{path}: {plan.width}*{plan.height}, {plan.total_frames} frames at {outcome.fps:g} fps, seed {plan.seed}"]
    lines += [f"  {stage.stage:<10} {stage.seconds:8.1f} s{_memory(stage)}" for stage in outcome.report]
    lines.append(f"  {'write':<10} {write_seconds:8.1f} s")
    lines += [f"  {note}" for note in notes]
    return facts, "\n".join(lines)


def _memory(stage: StageReport) -> str:
    loading = f", {stage.load_seconds:.1f} s of it loading" if stage.load_seconds >= 0.05 else ""
    device = f", peak {stage.peak_device_bytes / GIB:.1f} GiB on the device" if stage.peak_device_bytes else ""
    host = f", {stage.host_rss_bytes / GIB:.1f} GiB of main memory" if stage.host_rss_bytes else ""
    return loading + device + host
