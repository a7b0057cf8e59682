"""Many videos with one command: `--prompts FILE`, `--seeds`, `--num_seeds`.

Every row is checked before any weight is read; a bad one is named and the others run. Texts come first, each distinct one
through the text encoder once, then the videos one by one. What is finished is not made again (`ledger.py`).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinograph.cli import work
from kinograph.cli.job import Job, Setup, request_of, setup_of
from kinograph.cli.ledger import HIDDEN, Entry, Ledger, alone, is_finished
from kinograph.cli.progress import Progress
from kinograph.cli.rows import BadRow, Row, read_rows
from kinograph.errors import KinographError, MediaError, RequestError
from kinograph.requests import VideoRequest

if TYPE_CHECKING:
    from kinograph.preprocess.prompts import PromptExtender
    from kinograph.runtime.embeddings import EmbeddingCache
    from kinograph.runtime.placement import Components
    from kinograph.tasks.plan import Plan

FLAGS = ("prompts", "seeds", "num_seeds")  # any of them asks for many videos
DEFAULT_FOLDER = "videos"
SOME_FAILED = 2  # exit status, as for an error that the user can put right


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One video that a row and a seed ask for. The seed of `request` may still be open (-1)."""

    row: Row
    request: VideoRequest
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A video with its place in the ledger, and so with a seed and a name."""

    wanted: Wanted
    identity: str
    entry: Entry
    job: Job
    plan: Plan
    path: Path

    @property
    def where(self) -> dict[str, Any]:
        row = self.wanted.row
        return {"row": row.number, "source": row.source, "seed": self.plan.seed}


@dataclass
class Tally:
    """What came of the videos; a bad row counts once."""

    made: int = 0
    already_there: int = 0
    failed: int = 0

    def __str__(self) -> str:
        parts = [f"{self.made} made"]
        parts += [f"{self.already_there} already there"] if self.already_there else []
        return ", ".join([*parts, f"{self.failed} failed"] if self.failed else parts)


def asked_for(values: Mapping[str, Any]) -> bool:
    return any(flag in values for flag in FLAGS)


def run(values: Mapping[str, Any], progress: Progress) -> int:
    """Makes what is not there yet; returns the exit status."""
    from kinograph.media.files import check_folder_writable

    refuse_single(values)
    setup = setup_of(values)
    rows = rows_of(values)
    folder = Path(values.get("output_dir", DEFAULT_FOLDER))
    tally = Tally()
    wanted = all_wanted(rows, values, setup, progress, tally)
    if wanted:
        check_folder_writable(folder)
        with alone(folder):
            make_all(wanted, setup, folder, progress, tally, overwrite=bool(values.get("overwrite")))
    progress.summary({**vars(tally), "folder": str(folder)}, f"{folder}: {tally}")
    return SOME_FAILED if tally.failed else 0


def refuse_single(values: Mapping[str, Any]) -> None:
    if "save_file" in values:
        raise RequestError("--save_file names one video and there are several; give their folder with --output_dir")
    if "prompts" in values and "prompt" in values:
        raise RequestError("the prompts are in the file of --prompts; leave the single prompt out")
    if "seeds" in values and ("num_seeds" in values or "base_seed" in values):
        raise RequestError("--seeds lists the seeds themselves; leave --num_seeds and --base_seed out")


# ------------------------------------------------------------------------------------------------- what is asked for


def rows_of(values: Mapping[str, Any]) -> list[Row | BadRow]:
    """The rows of the file, or the command line as the only one."""
    return read_rows(values["prompts"]) if "prompts" in values else [Row(number=1, source="the command line", values={})]


def all_wanted(
    rows: Sequence[Row | BadRow], values: Mapping[str, Any], setup: Setup, progress: Progress, tally: Tally
) -> list[Wanted]:
    """The videos of all rows that can be made, planned. The others are named."""
    wanted: list[Wanted] = []
    for row in rows:
        try:
            if isinstance(row, BadRow):
                raise RequestError(row.problem)
            for one in wanted_of(row, values, setup):
                refuse_other_steps(one.plan, wanted[0].plan if wanted else one.plan)
                wanted.append(one)
        except KinographError as error:
            tally.failed += 1
            progress.problem({"row": row.number, "source": row.source}, f"{row.source}: {error}")
    return wanted


def wanted_of(row: Row, values: Mapping[str, Any], setup: Setup) -> list[Wanted]:
    request = request_of({**values, **row.values}, setup.spec)
    plan = work.planned(request, setup.spec)
    requests = [replace(request, seed=seed) for seed in seeds_of(row, values, request.seed)]
    return [Wanted(row=row, request=request, plan=plan) for request in requests]


def seeds_of(row: Row, values: Mapping[str, Any], base: int) -> tuple[int, ...]:
    """The seeds of one row: its own, or those of the flags. -1 is one to be drawn."""
    if "seeds" in values:
        return values["seeds"] if "base_seed" not in row.values else (base,)
    return tuple(base + i if base >= 0 else -1 for i in range(values.get("num_seeds", 1)))


def refuse_other_steps(plan: Plan, first: Plan) -> None:
    """A few-step LoRA that is absent at first is set up once, for one number of steps."""
    if plan.preset is not None and plan.num_steps != first.num_steps:
        raise RequestError(
            f"with --preset all rows have the same number of steps; this one has {plan.num_steps} and the first {first.num_steps}"
        )


# --------------------------------------------------------------------------------------------------------- making


def make_all(wanted: Sequence[Wanted], setup: Setup, folder: Path, progress: Progress, tally: Tally, *, overwrite: bool) -> None:
    """Makes the videos that are not in `folder` yet."""
    from kinograph.checkpoints.layout import TEXT_ENCODER
    from kinograph.runtime.embeddings import EmbeddingCache

    extender = work.make_extender(setup)
    components = work.load(setup, wanted[0].plan, progress)
    ledger = Ledger(folder)
    common = common_facts(setup, components)
    todo = unfinished([listed(each, setup, common, ledger, overwrite=overwrite) for each in wanted], progress, tally)
    ledger.save()
    ledger.remove_leftovers()
    if not todo:
        return
    for warning in dict.fromkeys(warning for each in todo for warning in each.plan.warnings):
        progress.notice(warning)
    if extender is not None:
        with extender:
            todo = with_extended_prompts(todo, ledger, extender, progress, tally)
    embeddings = EmbeddingCache(components, folder / HIDDEN / "embeddings")
    progress.stage("text")
    embeddings.embed([text for each in todo for text in (each.job.request.prompt, each.plan.negative_prompt)])
    components.release(TEXT_ENCODER)  # every text is embedded, and the room is wanted
    for number, each in enumerate(todo, start=1):
        progress.begin({**each.where, "video": number, "videos": len(todo)}, f"{number} of {len(todo)}: {each.path.name}")
        make_one(each, components, embeddings, progress, tally)


def common_facts(setup: Setup, components: Components) -> dict[str, Any]:
    """What decides all the videos: a video of other weights is another video."""
    from kinograph.pipeline import loras_of

    return {
        "model": setup.spec.name,
        "weights": components.fingerprints(),
        "loras": [described for lora in loras_of(components) for described in lora.describe()],
        "extension": setup.extension and asdict(setup.extension),
    }


def listed(wanted: Wanted, setup: Setup, common: Mapping[str, Any], ledger: Ledger, *, overwrite: bool) -> Listed:
    """`wanted` under its name in the ledger, and with its seed."""
    from kinograph.recipe import describe_request
    from kinograph.tasks.plan import draw_seed

    request, plan = wanted.request, wanted.plan
    identity = ledger.identity({**common, "request": describe_request(request)})
    entry = ledger.entry(
        identity, row=wanted.row.number, prompt=request.prompt, seed=draw_seed(request.seed), suffix=work.suffix_of(plan)
    )
    return Listed(
        wanted=wanted,
        identity=identity,
        entry=entry,
        job=Job(setup=setup, request=replace(request, seed=entry.seed), overwrite=overwrite, resume=None),
        plan=replace(plan, seed=entry.seed),
        path=ledger.folder / entry.name,
    )


def unfinished(videos: Sequence[Listed], progress: Progress, tally: Tally) -> list[Listed]:
    """Those still to be made. A name that something else has is a problem, unless it may be overwritten."""
    from kinograph.recipe import describe_request

    todo = []
    for each in videos:
        try:
            if is_finished(each.path, describe_request(each.job.request)):
                tally.already_there += 1
                continue
        except MediaError as error:
            if not each.job.overwrite:
                tally.failed += 1
                progress.problem(each.where, f"{each.wanted.row.source}: {error}")
                continue
        todo.append(each)
    return todo


def with_extended_prompts(
    videos: Sequence[Listed], ledger: Ledger, extender: PromptExtender, progress: Progress, tally: Tally
) -> list[Listed]:
    """The videos with their prompts extended, without those that cannot be."""
    done = []
    for each in videos:
        try:
            done.append(with_extended_prompt(each, ledger, extender, progress))
        except KinographError as error:
            tally.failed += 1
            progress.problem(each.where, f"{each.wanted.row.source}: {error}")
    return done


def with_extended_prompt(video: Listed, ledger: Ledger, extender: PromptExtender, progress: Progress) -> Listed:
    """`video` with its prompt extended; the ledger keeps the result, so that it is asked for once."""
    kept = video.entry
    if kept.prompt is not None:
        return replace(video, job=replace(video.job, request=replace(video.job.request, prompt=kept.prompt), extended=kept.extended))
    job = work.extended(video.job, video.plan, extender, progress)
    if job.extended:
        ledger.update(video.identity, replace(kept, prompt=job.request.prompt, extended=job.extended))
        ledger.save()
    return replace(video, job=job)


def make_one(video: Listed, components: Components, embeddings: EmbeddingCache, progress: Progress, tally: Tally) -> None:
    """Makes one video. What is wrong with it alone is a problem; that nothing can be written ends the batch."""
    try:
        facts, summary = work.made(video.job, video.plan, components, str(video.path), progress, embeddings=embeddings)
    except work.NotWritten:
        raise
    except KinographError as error:
        tally.failed += 1
        progress.problem(video.where, f"{video.wanted.row.source}: {error}")
        return
    tally.made += 1
    progress.result(facts, summary.partition("\n")[0])
