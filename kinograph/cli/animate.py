"""`kinograph animate`: a video and a picture to a finished video. Prepares the material, which is kept by content, then generates."""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinograph import __version__
from kinograph.cli import preprocess, work
from kinograph.cli.arguments import (
    EXTEND,
    GENERATE_FLAGS,
    MANY,
    OUTPUT,
    SPEECH,
    WHAT,
    Flag,
    Parser,
    count,
    number,
    one_of,
    size,
    whole_number,
)
from kinograph.cli.job import Job, find_spec, job_of
from kinograph.cli.progress import Progress, make_progress
from kinograph.config import MODELS, ModelSpec
from kinograph.errors import CheckpointError, MediaError, RequestError

if TYPE_CHECKING:
    from kinograph.preprocess.animate.prepare import PrepareSettings

PREPARING = "preparing the material (kept for the next run with the same inputs)"


OWN_FLAGS: tuple[Flag, ...] = (
    Flag(name="video", group=WHAT, metavar="FILE", help="the video whose person is followed"),
    Flag(name="image", group=WHAT, metavar="FILE", help="the character"),
    Flag(name="mode", group=WHAT, read=one_of("animate", "replace"), metavar="MODE",
         help="animate the picture (default), or replace the person in the video by its character"),
    Flag(name="preview", group=OUTPUT, metavar="FILE",
         help="a sheet of what was prepared (.png); without -o nothing more is made, so that it can be looked at first"),
    Flag(name="size", group=PREPARING, read=size, metavar="W*H", help="area of the result in pixels (default: the model's own size)"),
    Flag(name="fps", group=PREPARING, read=number, metavar="N", help="frames per second of the result (default: the video's)"),
    Flag(name="person", group=PREPARING, read=whole_number, metavar="N", help="who is followed, by size: 0 (default) is the largest"),
    Flag(name="click", group=PREPARING, read=preprocess.point, metavar="X,Y",
         help="a point of the first frame, in pixels, on the person to follow"),
    Flag(name="retarget_flag", group=PREPARING, read=None, help="give the skeleton the character's proportions"),
    Flag(name="use_flux", group=PREPARING, read=None, help="measure them on edited pictures; with --retarget_flag"),
    Flag(name="iterations", group=PREPARING, read=whole_number, metavar="N", help="growths of the mask (default: 3)"),
    Flag(name="k", group=PREPARING, read=count, metavar="N", help="pixels of each growth (default: 7)"),
    Flag(name="w_len", group=PREPARING, read=count, metavar="N", help="blocks across that the mask is filled up in (default: 1)"),
    Flag(name="h_len", group=PREPARING, read=count, metavar="N", help="blocks down (default: 1)"),
    Flag(name="models", group=PREPARING, read=one_of("mediapipe", "published"), metavar="NAME",
         help="what finds the person: mediapipe (default), or the published models of --ckpt_path"),
    Flag(name="ckpt_path", group=PREPARING, metavar="DIR", help="the process_checkpoint folder of the published models"),
    Flag(name="cache_dir", group=PREPARING, metavar="DIR", help="where material is kept (default: kinograph/animate in the user's cache)"),
)  # fmt: skip
_LEFT_OUT = {flag.name for flag in OWN_FLAGS} | {"last_image", "num_clip", "src_root_path", "replace_flag"}
_HELP_HERE = {
    "task": "animate-14B or animate-nano (default: the model of --ckpt_dir, or the one that ships with the package)",
    "prompt": "default: the published sentence, which is best left alone",
}
_OF_GENERATE = (flag for flag in GENERATE_FLAGS if flag.name not in _LEFT_OUT and flag.group not in (MANY, EXTEND, SPEECH))
FLAGS = (*OWN_FLAGS, *(dataclasses.replace(flag, help=_HELP_HERE.get(flag.name, flag.help)) for flag in _OF_GENERATE))


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        "animate",
        example="kinograph animate --video dance.mp4 --image character.png -o result.mp4",
        description="The character of a picture moves as the person in a video does, or takes that person's place (--mode replace).",
    )
    parser.add_flags(FLAGS)
    values = parser.read(argv)
    with make_progress(as_json="json" in values, quiet="quiet" in values) as progress:
        animate(values, progress)
    return 0


def animate(values: Mapping[str, Any], progress: Progress) -> None:
    """Material, sheet and video, as far as they are asked for. What can be refused is refused before the material is made."""
    for flag, what in (("video", "video whose person is followed"), ("image", "picture of the character")):
        if flag not in values:
            raise RequestError(f"which {what}? For example: kinograph animate --video dance.mp4 --image character.png -o result.mp4")
    spec = spec_of(values)
    settings = settings_of(values, spec)
    folder = cache_root(values) / identity(values["video"], values["image"], settings)
    job = job_for(values, spec, folder)
    only_sheet = "preview" in values and "save_file" not in values and "output_dir" not in values
    if not only_sheet:
        check_result(job)
    material = prepared(job, values, settings, folder, progress)
    if "preview" in values:
        from kinograph.preprocess.animate.preview import write_preview

        write_preview(folder, values["preview"])
    if only_sheet:
        facts = {"preview": values["preview"], "material": str(folder), **material}
        progress.result(facts, f"{values['preview']}: the material in {folder}\nif it is good, go on with the same command and -o FILE")
        return
    work.carry_out(job, progress)


# ----------------------------------------------------------------------------------------------------- what is asked


def spec_of(values: Mapping[str, Any]) -> ModelSpec:
    """The animation model that the flags name, or the one that ships with the package."""
    if "task" in values or "ckpt_dir" in values:
        spec = find_spec(values)
        if spec.task != "animate":
            raise RequestError(f"{spec.name} does not animate characters; choose one of {', '.join(_animation_models())} with --task")
        return spec
    bundled = [name for name in _animation_models() if MODELS[name].bundled]
    if not bundled:
        raise RequestError(f"which model? Choose one of {', '.join(_animation_models())} with --task, and its weights with --ckpt_dir")
    return MODELS[bundled[0]]


def _animation_models() -> list[str]:
    return [name for name, spec in MODELS.items() if spec.task == "animate" and spec.available]


def settings_of(values: Mapping[str, Any], spec: ModelSpec) -> PrepareSettings:
    """How the material is made: the source's frame rate, the model's size, and what the flags say."""
    if "click" in values and "person" in values:
        raise RequestError("--click and --person both choose the person; leave one of them out")
    mode = {"replace_flag": True} if values.get("mode") == "replace" else {}
    return preprocess.settings_of({"fps": -1, **values, "resolution_area": values.get("size", spec.sizes[0]), **mode})


def job_for(values: Mapping[str, Any], spec: ModelSpec, folder: Path) -> Job:
    """What `kinograph generate` would be told, once the material is in `folder`."""
    own = {flag.name for flag in OWN_FLAGS}
    rest = {name: value for name, value in values.items() if name not in own}
    mode = {"replace_flag": "replace"} if values.get("mode") == "replace" else {}
    return job_of({**rest, "task": spec.name, "src_root_path": str(folder), **mode})


def check_result(job: Job) -> None:
    """Raises where the weights are not there, or the result could not be written."""
    from kinograph.media import check_writable

    folder = work.weights_folder(job.setup)
    if folder is not None and not Path(folder).is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}; check --ckpt_dir")
    if job.save_file is not None:
        check_writable(job.save_file)
        if not job.overwrite and Path(job.save_file).is_file():
            raise MediaError(f"{job.save_file} exists already; add --overwrite to replace it, or choose another name")


# ---------------------------------------------------------------------------------------------------------- material


def cache_root(values: Mapping[str, Any]) -> Path:
    if "cache_dir" in values:
        return Path(values["cache_dir"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kinograph" / "animate"


def identity(video: str, image: str, settings: PrepareSettings) -> str:
    """The name of the folder for what is made of these two files in this way. Raises MediaError where one cannot be read."""
    digest = hashlib.sha256()
    for path, kind in ((video, "video"), (image, "picture")):
        digest.update(_content(Path(path), kind))
    facts = {"kinograph": __version__, **dataclasses.asdict(settings)}
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def _content(path: Path, kind: str) -> bytes:
    from kinograph.media.files import read_error
    from kinograph.recipe import sha256_of

    try:
        return sha256_of(path).encode()
    except OSError as error:
        raise read_error(path, error, kind=kind) from error


def prepared(job: Job, values: Mapping[str, Any], settings: PrepareSettings, folder: Path, progress: Progress) -> dict[str, Any]:
    """What is known of the material in `folder`, which is made unless it is there and whole."""
    if not _is_whole(job, folder):
        from kinograph.preprocess.animate.prepare import prepare_material

        prepare_material(Path(values["video"]), Path(values["image"]), folder, settings=settings, on_progress=_stages(progress))
    facts = json.loads((folder / "material.json").read_text(encoding="utf-8"))
    for note in facts.get("notes", ()):
        progress.notice(note)
    return facts


def _is_whole(job: Job, folder: Path) -> bool:
    from kinograph.requests import Animate
    from kinograph.tasks.animate import material_of

    assert isinstance(job.request, Animate)
    if not (folder / "material.json").is_file():
        return False
    try:
        material_of(job.request, job.setup.spec)
    except MediaError:
        return False
    return True


def _stages(progress: Progress) -> Callable[[str, int, int], None]:
    """Tells each stage of the preparation once, at its beginning."""
    told: set[str] = set()

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in told:
            told.add(stage)
            progress.stage(stage)

    return tell
