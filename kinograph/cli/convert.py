"""`kinograph convert SOURCE TARGET --to LAYOUT`: a checkpoint, or one model of it, in another layout or in fewer bits."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinograph.cli.arguments import OUTPUT, Flag, Parser, near_match, one_of
from kinograph.config import MODELS, ModelSpec
from kinograph.errors import CheckpointError, RequestError

SOURCE, RESULT = "what to convert", "what to write"
PART_NAMES = ("high_noise", "low_noise", "transformer", "vae", "text_encoder", "tokenizer")
DTYPES = ("bfloat16", "float16", "float32")

FLAGS = (
    Flag(name="task", other_names=("model",), group=SOURCE, metavar="MODEL", help="whose weights they are (default: recognised)"),
    *(
        Flag(name=name, group=SOURCE, metavar="PATH", help=f"the {name.replace('_', ' ')} from elsewhere, in any format")
        for name in PART_NAMES
    ),
    Flag(name="to", group=RESULT, read=one_of("published", "diffusers", "single"), metavar="LAYOUT",
         help="published, diffusers, or single: one file a model, as ComfyUI has them"),
    Flag(name="dtype", group=RESULT, read=one_of(*DTYPES), metavar="NAME",
         help=f"of transformers and text encoder: {', '.join(DTYPES)} (default: as stored; the VAE keeps its own)"),
    Flag(name="quantise", other_names=("quantize",), group=RESULT, metavar="NAME",
         help="with --to single: fp8 (scaled), or a GGUF type: q8_0, q5_1, q5_0, q4_1, q4_0"),
    Flag(name="overwrite", group=OUTPUT, read=None, help="replace what is at TARGET"),
    Flag(name="json", group=OUTPUT, read=None, help="one JSON object a line on stdout"),
)  # fmt: skip


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        "convert",
        example="kinograph convert Wan2.2-TI2V-5B comfyui-models --to single --quantise fp8",
        description="Writes a checkpoint folder, or one weight file, in another layout or in fewer bits.",
    )
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="a checkpoint folder in any layout, or a weight file")
    parser.add_argument("target", nargs="?", metavar="TARGET", help="the folder or file to write")
    parser.add_flags(FLAGS)
    values = parser.read(argv)
    missing = [what for name, what in (("source", "SOURCE"), ("target", "TARGET"), ("to", "--to LAYOUT")) if name not in values]
    if missing:
        raise RequestError(f"convert lacks {' and '.join(missing)}; for example: kinograph convert SOURCE TARGET --to diffusers")
    path = convert(values)
    print(json.dumps({"path": str(path)}) if "json" in values else f"written: {path}")
    return 0


def convert(values: Mapping[str, Any]) -> Path:
    """Carries out what the flags say and returns the path written."""
    import torch

    from kinograph.checkpoints.convert import QUANTISATIONS, Target, convert_file, convert_folder
    from kinograph.checkpoints.layout import Parts

    quantise = values["quantise"].lower() if "quantise" in values else None
    if quantise not in (None, *QUANTISATIONS):
        raise RequestError(f"--quantise {values['quantise']!r} cannot be written; choose one of {', '.join(QUANTISATIONS)}")
    to = Target(
        layout=values["to"],
        dtype=getattr(torch, values["dtype"]) if "dtype" in values else None,
        quantise=quantise,
        overwrite="overwrite" in values,
    )
    source = Path(values["source"])
    parts = Parts(**{name: values[name] for name in PART_NAMES if name in values})
    if not source.exists():
        raise CheckpointError(f"there is no file or folder {source}; check the path")
    if source.is_dir():
        say = (lambda line: None) if "json" in values else print
        return convert_folder(folder_spec(values, source), source, values["target"], to, parts=parts, report=say)
    if parts:
        raise RequestError(f"{source} is one model, which nothing can be added to; give a folder, or leave the flags for parts out")
    return convert_file(source, values["target"], to, spec=named_spec(values))


def named_spec(values: Mapping[str, Any]) -> ModelSpec | None:
    name = values.get("task")
    if name is not None and name not in MODELS:
        raise RequestError(f"the model {name!r} is not known{near_match(name, MODELS)}; choose one of {', '.join(MODELS)}")
    return MODELS[name] if name else None


def folder_spec(values: Mapping[str, Any], folder: Path) -> ModelSpec:
    """The model of `--task`, else the one whose weights are in `folder`."""
    from kinograph.checkpoints.layout import guess_model

    spec = named_spec(values) or MODELS.get(guess_model(folder) or "")
    if spec is None:
        raise CheckpointError(f"{folder} does not say which model it holds; say so with --task")
    return spec
