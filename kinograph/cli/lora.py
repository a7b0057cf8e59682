"""`kinograph lora check FILE`: what a LoRA is, what it fits, and what is wrong with it; and the text of the `--lora` flags."""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinograph.cli.arguments import OUTPUT, WHAT, Flag, Parser, near_match, number
from kinograph.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from kinograph.checkpoints.lora_formats import LoraContents, LoraTensors
    from kinograph.config import ModelSpec
    from kinograph.runtime.lora import LoraFile, Phase

FLAGS = (
    Flag(name="task", group=WHAT, metavar="MODEL", help="check against this model (default: find the models it fits)"),
    Flag(name="json", group=OUTPUT, read=None, help="one JSON object"),
)
DOES_NOT_FIT = 2  # exit status, as for an error that the user can put right
NUM_SHOWN = 5


# --------------------------------------------------------------------------------------------- flags of `generate`


def parse_lora_argument(text: str, *, expert: str | None = None) -> LoraFile:
    """The LoRA that the value of a `--lora` flag asks for; `expert` is the one that the flag is for.

        FILE                                strength 1
        FILE:0.8
        FILE:high_noise=1,low_noise=0.6     by expert
        FILE:1@0-0.5,0.3@0.5-1              by phase: shares of the steps; strength 0 elsewhere

    Raises ValueError, whose message completes "--lora ...", if the part after the last colon is none of these.
    """
    from kinograph.runtime.lora import LoraFile

    path, strength = _split(text)
    phases: tuple[Phase, ...] = ()
    value: float | Mapping[str, float] = 1.0
    if "@" in strength:
        phases = tuple(_phase(part) for part in strength.split(","))
    elif "=" in strength:
        value = dict(_expert_strength(part) for part in strength.split(","))
    elif strength:
        value = _strength(strength)
    if expert is not None:
        if isinstance(value, Mapping):
            raise ValueError("is for one expert already; give one strength")
        value = {expert: value}
    return LoraFile(path, value, phases)


def lora_for(expert: str) -> Callable[[str], LoraFile]:
    """A reader for the flag of one expert: `Flag(name="lora_high", read=lora_for("high_noise"), ...)`."""
    return lambda text: parse_lora_argument(text, expert=expert)


def _split(text: str) -> tuple[str, str]:
    path, colon, strength = text.rpartition(":")
    # A colon may also belong to the path: C:\loras\style.safetensors.
    if not colon or re.search(r"[/\\]", strength) or Path(text).exists():
        path, strength = text, ""
    elif not strength:
        raise ValueError(f"has no strength after the colon; such as {path}:0.8")
    if not path:
        raise ValueError("must be FILE or FILE:STRENGTH, such as style.safetensors:0.8")
    return path, strength


def _strength(text: str) -> float:
    try:
        return number(text)
    except ValueError:
        raise ValueError("must be FILE, FILE:0.8, FILE:high_noise=1,low_noise=0.6 or FILE:1@0-0.5,0.3@0.5-1") from None


def _expert_strength(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name.strip(), _strength(value)


def _phase(text: str) -> Phase:
    from kinograph.runtime.lora import Phase

    strength, _, share = text.partition("@")
    start, _, end = share.partition("-")
    try:
        return Phase(start=_strength(start), end=_strength(end), strength=_strength(strength))
    except RequestError as problem:
        raise ValueError(f"has a phase that cannot be: {problem}") from None


# ------------------------------------------------------------------------------------------------------- the command


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        "lora check",
        example="kinograph lora check style.safetensors",
        description="Says what a LoRA file is: format, expert, rank, alpha, the models it fits, and keys that match nothing.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="a LoRA, or the folder that PEFT or diffusers saved one in")
    parser.add_flags(FLAGS)
    verb, rest = (argv[0], argv[1:]) if argv and argv[0] not in ("-h", "--help") else ("check", argv)
    if verb != "check":
        raise RequestError(f"there is no command 'lora {verb}'{near_match(verb, ['check'])}; use: kinograph lora check FILE")
    values = parser.read(rest)
    if "file" not in values:
        raise RequestError("which file? For example: kinograph lora check style.safetensors")
    report = check(values["file"], task=values.get("task"))
    print(json.dumps(report, ensure_ascii=False) if "json" in values else described(report))
    return 0 if report["fits"] else DOES_NOT_FIT


def check(path: str, *, task: str | None = None) -> dict[str, Any]:
    """What is worth knowing about a LoRA, JSON-able. With `task`, how it fits that model; else every model it fits."""
    from kinograph.checkpoints.lora_formats import choice_notes, guess_expert, guess_models, key_notes, match, model_shapes, read_lora
    from kinograph.pipeline import find_model

    lora, notes = read_lora(path), []
    if task is None:
        found = guess_models(lora)
        if not found:
            raise CheckpointError(f"{path} fits no model of the table ({len(lora.tensors)} tensors, the first {next(iter(lora.tensors))})")
        models, contents, notes = list(found), next(iter(found.values())), choice_notes(found)
        problem = f"{len(contents.unmatched)} keys match nothing in {', '.join(models)}" if contents.unmatched else None
    else:
        spec = find_model(task)
        models, contents = [spec.name], match(lora, model_shapes(spec), experts=[expert.name for expert in spec.experts])
        problem = _problem(lora, contents, spec)
    guess = guess_expert(lora)
    return {
        "file": str(lora.path),
        "fits": problem is None,
        "problem": problem,
        "models": models,
        "expert": guess.expert if guess else None,
        "expert_from": guess.because if guess else None,
        **_counts(contents),
        "notes": [*notes, *key_notes(lora, contents)],
    }


def described(report: Mapping[str, Any]) -> str:
    """The report in lines."""
    expert = f"{report['expert']} (by {report['expert_from']})" if report["expert"] else "not said; the weights do not tell"
    alpha = ", ".join("none (factor 1 is assumed)" if each is None else f"{each:g}" for each in report["alpha"])
    rows = {
        "format": ", ".join(report["format"]),
        "model": " or ".join(report["models"]) + ("" if report["fits"] else ": does not fit"),
        "expert": expert,
        "rank": ", ".join(map(str, report["rank"])) or "none",
        "alpha": alpha or "none",
        "changes": f"{report['num_low_rank']} weights by low rank, {report['num_differences']} tensors by their difference",
    }
    lines = [report["file"], *(f"  {name:<8} {value}" for name, value in rows.items())]
    for name, title in (("unmatched", "match nothing"), ("misshaped", "have another shape")):
        if keys := report[name]:
            more = ["..."] if len(keys) > NUM_SHOWN else []
            lines += [f"  {len(keys)} keys {title}:", *(f"    {key}" for key in (*keys[:NUM_SHOWN], *more))]
    lines += [f"  note: {note}" for note in report["notes"]]
    if report["problem"]:
        lines.append(f"  problem: {report['problem']}")
    return "\n".join(lines)


def _problem(lora: LoraTensors, contents: LoraContents, spec: ModelSpec) -> str | None:
    from kinograph.checkpoints.lora_formats import require_fit

    try:
        require_fit(lora, contents, spec)
    except CheckpointError as error:
        return str(error)
    return None


def _counts(contents: LoraContents) -> dict[str, Any]:
    return {
        "format": list(contents.families),
        "rank": list(contents.ranks),
        "alpha": list(contents.alphas),
        "num_low_rank": len(contents.low_rank),
        "num_differences": len(contents.changes) - len(contents.low_rank),
        "unmatched": list(contents.unmatched),
        "misshaped": [f"{misfit.key}: {misfit}" for misfit in contents.misfits],
    }
