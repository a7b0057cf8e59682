"""Draws how videos of several clips drift, from what `kinograph generate --json` said of them.

    kinograph generate --task s2v-nano ... --num_clip 10 --json > plain.jsonl
    kinograph generate --task s2v-nano ... --num_clip 10 --colour_anchor 1 --json > anchored.jsonl
    python benchmarks/drift_plot.py drift.png plain.jsonl anchored.jsonl

One panel for colour, one for sharpness, one for the joins; one line for each run.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

WIDTH, HEIGHT, LEFT, TOP = 300, 150, 40, 22  # of a panel and its margins, in pixels
COLOURS = ((200, 60, 40), (40, 90, 200), (40, 150, 70), (140, 60, 160))
Drift = list[dict[str, Any]]
PANELS: tuple[tuple[str, float, Callable[[dict[str, Any]], float | None]], ...] = (  # title, top of the axis, value of a clip
    ("colour, % of the range", 2.0, lambda clip: 100 * clip["colour"]),
    ("sharpness, of the first clip's", 2.0, lambda clip: clip["sharpness"]),
    ("step across the join, of those beside", 3.0, lambda clip: clip["join"]),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help="what --json printed; the name of the file is the run's")
    args = parser.parse_args()
    runs = {path.stem.replace("_", " "): drift_of(path) for path in args.runs}
    picture = Image.new("RGB", (len(PANELS) * (WIDTH + LEFT) + LEFT, HEIGHT + 2 * TOP + 16 * len(runs)), "white")
    pen = ImageDraw.Draw(picture)
    for number, (title, top, value) in enumerate(PANELS):
        panel(pen, LEFT + number * (WIDTH + LEFT), title, top, [[value(clip) for clip in drift] for drift in runs.values()])
    for number, name in enumerate(runs):
        pen.text((LEFT, HEIGHT + 2 * TOP + 14 * number), name, fill=COLOURS[number % len(COLOURS)])
    picture.save(args.picture)


def drift_of(path: Path) -> Drift:
    """The drift in the result that `path` holds; SystemExit if there is none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        if found.get("event") == "result" and found.get("drift"):
            return found["drift"]
    raise SystemExit(f"{path} has no result with drift; it must hold what --json printed for a video of several clips")


def panel(pen: ImageDraw.ImageDraw, left: int, title: str, top: float, runs: list[list[float | None]]) -> None:
    floor = TOP + HEIGHT
    pen.text((left, 4), title, fill="black")
    for level in (0.0, top / 2, top):
        y = floor - HEIGHT * level / top
        pen.line([(left, y), (left + WIDTH, y)], fill=(225, 225, 225))
        pen.text((left - 24, y - 6), f"{level:g}", fill=(90, 90, 90))
    for number, values in enumerate(runs):
        step = WIDTH / max(1, len(values) - 1)
        points = [(left + step * i, floor - HEIGHT * min(value, top) / top) for i, value in enumerate(values) if value is not None]
        pen.line(points, fill=COLOURS[number % len(COLOURS)], width=2)


if __name__ == "__main__":
    main()
