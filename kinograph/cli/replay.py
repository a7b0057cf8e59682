"""`kinograph replay FILE`: makes a generated file again from the recipe inside it.

Flags of `generate` replace what the recipe says. What differs from then, and may change the result, is said beforehand.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinograph import __version__
from kinograph.cli.arguments import EXTEND, GENERATE_FLAGS, MANY, Parser, fields_of
from kinograph.cli.job import (
    LORA_FLAGS,
    SWITCHES,
    Job,
    Setup,
    find_spec,
    loras_of,
    options_of,
    parts_of,
    refuse_flags_of_other_tasks,
    refuse_several_processes,
)
from kinograph.cli.progress import make_progress
from kinograph.cli.work import carry_out
from kinograph.config import RuntimeOptions
from kinograph.errors import CheckpointError, MediaError, RequestError
from kinograph.requests import VideoRequest

if TYPE_CHECKING:
    from kinograph.recipe import Recipe
    from kinograph.runtime.lora import LoraFile
    from kinograph.runtime.placement import Components

# The model is the recipe's, its prompt is final, and the LoRA for relighting is among its LoRAs.
FLAGS = tuple(flag for flag in GENERATE_FLAGS if flag.name not in ("task", "use_relighting_lora") and flag.group not in (EXTEND, MANY))
DECIDED = ("seed", "num_frames", "num_steps", "shift", "solver", "fps", "negative_prompt", "noise_device")
SAME_RESULT_KEYS = ("device_name", "dtype", "vae_dtype", "text_dtype")  # of the recipe's runtime: what rounding depends on


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        "replay",
        example="kinograph replay ball.mp4 -o again.mp4",
        description="Makes a file again from the recipe inside it; flags replace what the recipe says.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="a file, or folder of PNGs, that Kinograph wrote")
    parser.add_flags(FLAGS)
    values = parser.read(argv)
    if "file" not in values:
        raise RequestError("which file? For example: kinograph replay ball.mp4")
    from kinograph.recipe import read_recipe

    recipe = read_recipe(values["file"])
    job = job_of(recipe, values)
    with make_progress(as_json="json" in values, quiet="quiet" in values) as progress:

        def check(components: Components) -> None:
            for difference in differences(recipe, components):
                progress.notice(difference)

        carry_out(job, progress, check=check)
    return 0


def job_of(recipe: Recipe, values: Mapping[str, Any]) -> Job:
    """The job of the recipe, with the given flags in place of what it says."""
    from kinograph.tasks import REQUESTS

    refuse_several_processes(values)
    spec = find_spec({"task": recipe.model})
    refuse_flags_of_other_tasks(values, spec)
    given_loras = any(flag in values for flag in LORA_FLAGS)
    setup = Setup(
        spec=spec,
        options=options_as_recorded(recipe, values),
        folder=values.get("ckpt_dir"),
        parts=parts_of(values),
        loras=loras_of(values) if given_loras else recorded_loras(recipe),
        lora_ignore_unmatched="lora_ignore_unmatched" in values,
        lora_mode=values.get("lora_mode") or next((lora["mode"] for lora in recipe.loras if not given_loras), "auto"),
    )
    return Job(
        setup=setup,
        request=request_of(recipe, REQUESTS[spec.task], overrides=fields_of(values, "request")),
        save_file=values.get("save_file"),
        output_dir=values.get("output_dir"),
        overwrite="overwrite" in values,
        resume="resume" in values,
        extended={} if "prompt" in values else recipe.prompt_extension,
    )


def recorded_loras(recipe: Recipe) -> tuple[LoraFile, ...]:
    """The LoRA files of the recipe, at their strengths. They must be there and unchanged."""
    from kinograph.checkpoints.fingerprint import fingerprint
    from kinograph.runtime.lora import LoraFile, Phase

    files = []
    for lora in recipe.loras:
        path = Path(lora["path"])
        if not path.is_file():
            raise CheckpointError(f"the recipe's LoRA {path} is not there; put it back, or give another with --lora FILE:STRENGTH")
        if fingerprint(path) != lora["fingerprint"]:
            raise CheckpointError(f"the recipe's LoRA {path} has changed since; put the old one back, or take it as it is: --lora {path}")
        phases = tuple(Phase(start=start, end=end, strength=strength) for start, end, strength in lora["phases"])
        files.append(LoraFile(path, lora["strength"], phases))
    return tuple(files)


def request_of(recipe: Recipe, request_class: type[VideoRequest], *, overrides: Mapping[str, Any]) -> VideoRequest:
    """The request in the recipe, completed by what was decided then: a model's defaults may have changed since.

    Pictures must be there and unchanged.
    """
    recorded = {**recipe.request, **decided(recipe.plan), **overrides}
    known = {field.name for field in fields(request_class)}
    unknown = [name for name, value in recorded.items() if name not in known and value is not None]
    if unknown:
        raise RequestError(f"the recipe asks for {unknown[0]!r}, which this version does not have; update with: pip install -U kinograph")
    return request_class(**{name: restored(name, value) for name, value in recorded.items() if name in known})


def decided(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Request fields from a recorded plan. Not the size: with a picture the request holds an area, the plan what came of it."""
    fields_of_plan = {name: plan[name] for name in DECIDED if name in plan}
    return fields_of_plan | ({"guidance_scale": plan["guidance"]} if "guidance" in plan else {})


def restored(name: str, value: Any) -> Any:
    """`value` of the field `name` as a request has it: the record of a picture becomes its path."""
    if not isinstance(value, Mapping) or "sha256" not in value:
        return value
    from kinograph.recipe import folder_sha256, sha256_of

    if "path" not in value:
        raise MediaError(f"the recipe's {name} was given in memory, not as a file; give it with --{name} FILE")
    path = Path(value["path"])
    try:
        found = folder_sha256(path) if path.is_dir() else sha256_of(path)
    except OSError:
        raise MediaError(f"the recipe's {name} {path} is not there; put it back, or give another with --{name} FILE") from None
    if found != value["sha256"]:
        raise MediaError(f"the recipe's {name} {path} has changed since; put the old one back, or take it as it is with --{name} {path}")
    return str(path)


def options_as_recorded(recipe: Recipe, values: Mapping[str, Any]) -> RuntimeOptions:
    """The options of the flags; where they say nothing, the number formats of the recipe, and its text encoder on the CPU."""
    recorded = {field: recipe.runtime[field] for field in ("dtype", "vae_dtype") if field in recipe.runtime}
    if recipe.runtime.get("text_device") == "cpu":
        recorded["text_device"] = "cpu"
    for switch, (field, _) in SWITCHES.items():
        if switch in values:
            recorded.pop(field, None)
    return options_of({**recorded, **values})


def differences(recipe: Recipe, components: Components) -> Iterator[str]:
    """A sentence for each thing that is not as it was and may change the result."""
    import torch

    now = components.describe()
    compared = {
        "kinograph": (recipe.kinograph, __version__),
        "torch": (recipe.libraries.get("torch"), torch.__version__),
        **{key: (recipe.runtime.get(key), now[key]) for key in SAME_RESULT_KEYS},
    }
    for name, (then, here) in compared.items():
        if then is not None and then != here:
            yield f"{name} was {then} and is {here} here; the result may differ slightly"
    for name, fingerprint in components.fingerprints().items():
        if recipe.weights.get(name, fingerprint) != fingerprint:
            yield f"the weights of {name} are not those that made the file; the result will differ"
