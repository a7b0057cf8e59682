"""`kinograph generate`: the flags read, then one video (`work.py`) or many (`batch.py`)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kinograph.cli import batch, work
from kinograph.cli.arguments import GENERATE_FLAGS, Parser
from kinograph.cli.job import job_of
from kinograph.cli.progress import make_progress
from kinograph.errors import RequestError


def run(argv: Sequence[str]) -> int:
    values = parse(argv)
    with make_progress(as_json=bool(values.get("json")), quiet=bool(values.get("quiet"))) as progress:
        if batch.asked_for(values):
            return batch.run(values, progress)
        work.carry_out(job_of(values), progress)
    return 0


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """The given flags by name, with the prompt under "prompt" wherever it stood."""
    parser = Parser(
        "generate",
        example='kinograph generate "a red ball rolls to the right" -o ball.mp4',
        description="Makes a video, or many with --prompts. `-` and `_` mean the same in a flag.",
    )
    parser.add_argument("first", nargs="?", metavar="PROMPT", help="what the video shows")
    parser.add_flags(GENERATE_FLAGS)
    values = parser.read(argv)
    if "first" in values:
        if "prompt" in values:
            raise RequestError(f"the prompt is given twice, {values['first']!r} and --prompt {values['prompt']!r}; leave one out")
        values["prompt"] = values.pop("first")
    return values
