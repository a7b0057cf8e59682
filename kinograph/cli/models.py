"""`kinograph models`: the model table, for people and for machines."""
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kinograph.cli.arguments import OUTPUT, Flag, Parser
from kinograph.cli.sizes import dit_parameters, in_billions
from kinograph.config import MODELS, ModelSpec

FLAGS = (Flag(name="json", group=OUTPUT, read=None, help="one JSON object a line, a model each"),)
HEADINGS = ("name", "task", "frames", "fps", "parameters", "weights", "status", "sizes")


def run(argv: Sequence[str]) -> int:
    parser = Parser("models", example="kinograph models", description="Lists the models that `--task` takes.")
    parser.add_flags(FLAGS)
    rows = [facts(spec) for spec in MODELS.values()]
    if "json" in parser.read(argv):
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        print(table([HEADINGS, *(cells(row) for row in rows)]))
    return 0


def facts(spec: ModelSpec) -> dict[str, Any]:
    """What is worth knowing about a model, JSON-able."""
    return {
        "name": spec.name,
        "task": spec.task,
        "sizes": [f"{width}*{height}" for width, height in spec.sizes],
        "num_frames": spec.num_frames,
        "fps": spec.fps,
        "num_steps": spec.num_steps,
        "experts": len(spec.experts),
        # Of one expert. The row of a model that is not built yet has the sizes of its base transformer only.
        "parameters": dit_parameters(spec.dit) if spec.available else None,
        "weights": "bundled" if spec.bundled else spec.hub,
        "status": "available" if spec.available else "coming",
    }


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table, under `HEADINGS`."""
    experts = f"{row['experts']} x " if row["experts"] > 1 else ""
    parameters = experts + in_billions(row["parameters"]) if row["parameters"] else "-"
    sizes = " ".join(row["sizes"])
    return (row["name"], row["task"], str(row["num_frames"]), str(row["fps"]), parameters, row["weights"], row["status"], sizes)


def table(rows: Sequence[Sequence[str]]) -> str:
    """`rows` in columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
