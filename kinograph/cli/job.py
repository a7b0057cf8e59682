"""From flags to what is to be done: the model and how to run it (`Setup`), and one video (`Job`).

Everything here reads flags alone; pictures, weights and output files are looked at in `work.py`.
"""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinograph.cli.arguments import EXTEND, GENERATE_FLAGS, PARTS, fields_of, near_match
from kinograph.config import MODELS, ModelSpec, RuntimeOptions
from kinograph.errors import CheckpointError, RequestError, RuntimeSetupError
from kinograph.requests import VideoRequest

if TYPE_CHECKING:
    from kinograph.runtime.lora import LoraFile
    from kinograph.runtime.placement import Parts

DEFAULT_MODEL = "ti2v-nano"  # ships with the package, so the shortest command works on a fresh machine
# Published switches that are other words for one value of an option.
SWITCHES = {"convert_model_dtype": ("dtype", "bfloat16"), "t5_cpu": ("text_device", "cpu")}
# Flag -> the expert that its LoRA is for; None: for every expert, unless the value says otherwise.
LORA_FLAGS = {"lora": None, "lora_high": "high_noise", "lora_low": "low_noise"}


@dataclass(frozen=True, kw_only=True)
class Extension:
    """How prompts are to be extended; the defaults are the published ones."""

    method: str = "local_qwen"
    model: str | None = None
    language: str = "zh"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all videos of one command share: the model, its weights, and how to run it."""

    spec: ModelSpec
    options: RuntimeOptions
    folder: str | None = None  # of the weights; None: those that ship with the package, or that the cache of a hub has
    parts: Parts | None = None  # single models from elsewhere
    loras: tuple[LoraFile, ...] = ()
    relighting: bool = False  # the LoRA for it that lies beside the weights joins them
    lora_mode: str = "auto"
    lora_ignore_unmatched: bool = False
    extension: Extension | None = None  # None: prompts are used as they are


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make."""

    setup: Setup
    request: VideoRequest
    save_file: str | None = None  # as written: a slash at the end means a folder. None: a name made from the request
    output_dir: str | None = None  # for names made from the request; None: the working directory
    overwrite: bool = False
    resume: bool | None = False  # go on with the clips that an earlier run left; None: where they are this very run's
    extended: Mapping[str, str | None] = field(default_factory=dict)  # where the prompt of `request` came from, for the recipe


def job_of(values: Mapping[str, Any]) -> Job:
    """The job that the flags describe; checks that they belong together."""
    if "save_file" in values and "output_dir" in values:
        raise RequestError("--save_file names the whole path and --output_dir the folder for a name made here; leave one of them out")
    setup = setup_of(values)
    return Job(
        setup=setup,
        request=request_of(values, setup.spec),
        save_file=values.get("save_file"),
        output_dir=values.get("output_dir"),
        overwrite=bool(values.get("overwrite")),
        resume="resume" in values,
    )


# ------------------------------------------------------------------------------------------------------------ setup


def setup_of(values: Mapping[str, Any]) -> Setup:
    """The model that the flags name, and how they say to run it."""
    spec = find_spec(values)
    refuse_several_processes(values)
    refuse_flags_of_other_tasks(values, spec)
    return Setup(
        spec=spec,
        options=options_of(values),
        folder=values.get("ckpt_dir"),
        parts=parts_of(values),
        loras=loras_of(values),
        relighting="use_relighting_lora" in values,
        lora_mode=values.get("lora_mode", "auto"),
        lora_ignore_unmatched="lora_ignore_unmatched" in values,
        extension=extension_of(values),
    )


def find_spec(values: Mapping[str, Any]) -> ModelSpec:
    """The model of `--task`, else of the weights that are given, else the one that ships with the package."""
    transformers = [flag for flag in ("transformer", "high_noise", "low_noise") if flag in values]
    if "task" in values:
        name = values["task"]
    elif "ckpt_dir" in values:
        name = model_in_folder(values["ckpt_dir"])
    elif transformers:
        name = model_of_file(values[transformers[0]])
    else:
        name = DEFAULT_MODEL
    if name not in MODELS:
        raise RequestError(f"the model {name!r} is not known{near_match(name, MODELS)}; choose one of {', '.join(MODELS)}")
    spec = MODELS[name]
    if not spec.available:
        ready = ", ".join(model.name for model in MODELS.values() if model.available)
        raise RequestError(f"{name} cannot be run by this version yet; choose one of {ready}")
    return spec


def model_in_folder(folder: str) -> str:
    """The name of the model whose weights are in `folder`."""
    from kinograph.checkpoints.layout import guess_model

    if not Path(folder).is_dir():
        raise CheckpointError(f"the checkpoint folder {folder!r} does not exist; check --ckpt_dir")
    name = guess_model(Path(folder))
    if name is None:
        raise CheckpointError(f"{folder} does not tell which model it is of; say with --task which model's weights it holds")
    return name


def model_of_file(path: str) -> str:
    """The name of the model that the transformer at `path` is of."""
    from kinograph.checkpoints.recognise import TRANSFORMER, model_files, recognise

    contents = recognise(model_files(Path(path)))
    if contents.kind != TRANSFORMER:
        raise CheckpointError(f"{path} is not a transformer; `kinograph inspect {path}` says what it is")
    models = [name for name in contents.models if MODELS[name].available]
    if len(models) != 1:
        raise CheckpointError(f"{path} does not tell which model it is of{_candidates(models)}; say it with --task")
    return models[0]


def _candidates(models: Sequence[str]) -> str:
    return f" (it fits {', '.join(models)})" if models else ""


def parts_of(values: Mapping[str, Any]) -> Parts | None:
    from kinograph.runtime.placement import Parts

    given = {flag.name: values[flag.name] for flag in GENERATE_FLAGS if flag.group == PARTS and flag.name in values}
    return Parts(**given) if given else None


def options_of(values: Mapping[str, Any]) -> RuntimeOptions:
    """Runtime options; the published switches are other words for a device and a dtype."""
    fields = fields_of(values, "options")
    for switch, (name, meaning) in SWITCHES.items():
        if switch in values and fields.setdefault(name, meaning) != meaning:
            raise RequestError(f"--{switch} means --{name} {meaning}, but --{name} is {fields[name]!r}; leave one of them out")
    return RuntimeOptions(**fields)


def loras_of(values: Mapping[str, Any]) -> tuple[LoraFile, ...]:
    """The LoRA files of all the flags for them, in the order of `LORA_FLAGS`."""
    from kinograph.cli.lora import parse_lora_argument

    files = []
    for flag, expert in LORA_FLAGS.items():
        for text in values.get(flag, ()):
            try:
                files.append(parse_lora_argument(text, expert=expert))
            except ValueError as problem:
                raise RequestError(f"--{flag} {problem}; got {text!r}") from None
    return tuple(files)


def extension_of(values: Mapping[str, Any]) -> Extension | None:
    if "use_prompt_extend" not in values:
        given = [flag for flag in GENERATE_FLAGS if flag.group == EXTEND and flag.name in values]
        if given:
            raise RequestError(f"{given[0]} says how to extend the prompt, which is only done with --use_prompt_extend; add it")
        return None
    return Extension(
        method=values.get("prompt_extend_method", Extension.method),
        model=values.get("prompt_extend_model"),
        language=values.get("prompt_extend_target_lang", Extension.language),
    )


def refuse_several_processes(values: Mapping[str, Any]) -> None:
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise RuntimeSetupError(f"this version runs in one process, and torchrun started {world_size}; run `kinograph` without torchrun")
    if values.get("ulysses_size", 1) != 1:
        raise RuntimeSetupError(f"this version runs on one GPU; got --ulysses_size {values['ulysses_size']}: leave it out or give 1")
    for switch in ("t5_fsdp", "dit_fsdp"):
        if switch in values:
            raise RuntimeSetupError(f"--{switch} needs several GPUs and this version uses one; leave it out, or use --offload_model true")


# ---------------------------------------------------------------------------------------------------------- request


def request_of(values: Mapping[str, Any], spec: ModelSpec) -> VideoRequest:
    """The request of the task of `spec`."""
    from kinograph.tasks import REQUESTS  # imports torch, which --help must not

    refuse_flags_of_other_tasks(values, spec)
    fields = fields_of(values, "request")
    if not fields.get("prompt", "").strip() and spec.default_prompt:
        fields["prompt"] = spec.default_prompt
    request_class = REQUESTS[spec.task]
    if "prompt" not in fields and _needs_prompt(request_class):
        raise RequestError('there is no prompt; say what the video should show: kinograph generate "a red ball rolls to the right"')
    return request_class(**fields)


def _needs_prompt(request_class: type[VideoRequest]) -> bool:
    return any(each.name == "prompt" and each.default is dataclasses.MISSING for each in dataclasses.fields(request_class))


def refuse_flags_of_other_tasks(values: Mapping[str, Any], spec: ModelSpec) -> None:
    from kinograph.tasks import REQUESTS

    for flag in GENERATE_FLAGS:
        fields = [name.partition(".")[2] for name in flag.fills if name.startswith("request.")]
        if flag.name in values and not _takes(spec, flag.tasks, fields, REQUESTS):
            owners = ", ".join(model.name for model in MODELS.values() if _takes(model, flag.tasks, fields, REQUESTS))
            raise RequestError(f"{flag} is for {owners}; {spec.name} does not take it: leave it out, or choose another --task")


def _takes(model: ModelSpec, tasks: Sequence[str], fields: Sequence[str], requests: Mapping[str, type]) -> bool:
    if tasks:
        return model.task in tasks
    return model.task in requests and {each.name for each in dataclasses.fields(requests[model.task])}.issuperset(fields)
