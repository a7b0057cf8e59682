"""`kinograph inspect PATH`: the recipe of a generated file, or what a weight file or a folder of weights is."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinograph.cli.arguments import OUTPUT, Flag, Parser
from kinograph.errors import KinographError, RequestError

if TYPE_CHECKING:
    from kinograph.recipe import Recipe

FLAGS = (Flag(name="json", group=OUTPUT, read=None, help="the recipe as it stands in the file; of weights, an object a line a model"),)
FACTS = ("kind", "models", "expert", "version", "names", "prefix", "storage", "num_parameters")  # of the weights of one model


def run(argv: Sequence[str]) -> int:
    parser = Parser("inspect", example="kinograph inspect ball.mp4", description="Shows how a file was made, or what weights are.")
    parser.add_argument("file", nargs="?", metavar="PATH", help="what Kinograph wrote, a weight file, or a folder of weights")
    parser.add_flags(FLAGS)
    values = parser.read(argv)
    if "file" not in values:
        raise RequestError("which file? For example: kinograph inspect ball.mp4")
    path = Path(values["file"])
    if holds_weights(path):
        show_weights(path, as_json="json" in values)
        return 0
    from kinograph.recipe import read_recipe

    recipe = read_recipe(path)
    print(recipe.to_json() if "json" in values else described(recipe))
    return 0


def holds_weights(path: Path) -> bool:
    """Whether weights are to be described, not a recipe. A folder of pictures is a video."""
    from kinograph.checkpoints.recognise import INDEX, SUFFIXES

    if path.is_dir():
        return not any(path.glob("*.png"))
    return path.suffix in SUFFIXES or path.name.endswith(INDEX)


def show_weights(path: Path, *, as_json: bool) -> None:
    from kinograph.checkpoints.recognise import all_models, describe, model_files

    if not as_json:
        print("\n".join(describe(path)))
        return
    for files in all_models(path) if path.is_dir() else [model_files(path)]:
        print(json.dumps(weight_facts(files), ensure_ascii=False))


def weight_facts(files: Sequence[Path]) -> dict[str, Any]:
    """What is worth knowing about the files of one model, JSON-able; or why they cannot be used."""
    from kinograph.checkpoints.recognise import recognise

    names = {"files": [str(file) for file in files]}
    try:
        contents = recognise(files)
    except KinographError as error:
        return {**names, "problem": str(error)}
    return {**names, **{fact: getattr(contents, fact) for fact in FACTS}}


def described(recipe: Recipe) -> str:
    """The recipe in sections, a line for each value that is set."""
    lines = [f"{recipe.model}, made {recipe.created} with kinograph {recipe.kinograph}"]
    sections = {name: value for name, value in asdict(recipe).items() if isinstance(value, Mapping) and value}
    for section, entries in sections.items():
        lines += [section, *(f"  {name:<16} {_text(value)}" for name, value in entries.items() if value is not None)]
    for lora in recipe.loras:
        phases = f", phases {json.dumps(lora['phases'])}" if lora["phases"] else ""
        lines += ["lora", f"  {lora['path']} (fingerprint {lora['fingerprint'][:12]}), strength {json.dumps(lora['strength'])}{phases}"]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and "path" in value:
        return f"{value['path']} (sha256 {str(value['sha256'])[:12]})"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
