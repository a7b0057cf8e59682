"""How a run tells where it is: JSON lines, a live bar, plain lines, or nothing.

For people everything goes to stderr except the closing summary; with `--json` stdout has one object a line, and nothing
else. `make_progress` picks the way, once.
"""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinograph.sampling.denoise import StepEvent

STAGES = {
    "extend": "extending the prompt",
    "text": "reading the prompt",
    "prepare": "reading the inputs",
    "condition": "preparing the conditioning",
    "denoise": "denoising",
    "decode": "decoding frames",
    "write": "writing the file",
}


class Progress:
    """Says nothing but notices and the summary; the others add to it. Use as a context manager."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def stage(self, name: str) -> None:
        """A stage begins."""

    def step(self, event: StepEvent) -> None:
        """A denoising step is done."""

    def notice(self, text: str) -> None:
        """Something the user should know."""
        print(f"note: {text}", file=sys.stderr)

    def result(self, facts: Mapping[str, Any], summary: str) -> None:
        """The run is done: `facts` for machines, `summary` for people."""
        self.close()
        print(summary, flush=True)

    def begin(self, facts: Mapping[str, Any], title: str) -> None:
        """The next of several videos begins: `facts` go with all that is told to machines about it, `title` is for people."""

    def problem(self, facts: Mapping[str, Any], message: str) -> None:
        """One of several videos cannot be made; the others can."""
        self.notice(message)

    def summary(self, facts: Mapping[str, Any], text: str) -> None:
        """All of several videos are done."""
        self.close()
        print(text, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""


class JsonProgress(Progress):
    """One JSON object a line on stdout; each has an `event`: begin, stage, step, notice, problem, result or summary."""

    def __init__(self) -> None:
        self._left = TimeLeft()
        self._video: Mapping[str, Any] = {}  # which of several videos the events are about

    def stage(self, name: str) -> None:
        self._say("stage", stage=name)

    def step(self, event: StepEvent) -> None:
        seconds_left = self._left.after(event)
        self._say(
            "step",
            step=event.index + 1,
            steps=event.total,
            expert=event.expert,
            sigma=event.sigma,
            seconds=round(event.seconds, 3),
            seconds_left=round(seconds_left, 1),
        )

    def notice(self, text: str) -> None:
        self._say("notice", message=text)

    def result(self, facts: Mapping[str, Any], summary: str) -> None:
        self._say("result", **facts)

    def begin(self, facts: Mapping[str, Any], title: str) -> None:
        self._video = facts
        self._say("begin")

    def problem(self, facts: Mapping[str, Any], message: str) -> None:
        self._video = {}
        self._say("problem", **facts, message=message)

    def summary(self, facts: Mapping[str, Any], text: str) -> None:
        self._video = {}
        self._say("summary", **facts)

    def _say(self, event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **self._video, **facts}, ensure_ascii=False), flush=True)


class LineProgress(Progress):
    """Short lines: each stage, and about every tenth part of the steps. For logs and pipes."""

    def __init__(self) -> None:
        self._left = TimeLeft()

    def begin(self, facts: Mapping[str, Any], title: str) -> None:
        print(title, file=sys.stderr, flush=True)

    def stage(self, name: str) -> None:
        print(STAGES.get(name, name), file=sys.stderr, flush=True)

    def step(self, event: StepEvent) -> None:
        seconds_left = self._left.after(event)
        done = event.index + 1
        if done * 10 // event.total != event.index * 10 // event.total:
            print(f"  step {done} of {event.total}{_left(event, seconds_left)}", file=sys.stderr, flush=True)


class BarProgress(Progress):
    """A live bar on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._left = TimeLeft()
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._task: Any = None
        self._bar.start()

    def begin(self, facts: Mapping[str, Any], title: str) -> None:
        for task in self._bar.task_ids:  # of the video before
            self._bar.remove_task(task)
        self._task = None
        self._bar.start()
        self._bar.console.print(title, markup=False, highlight=False)

    def stage(self, name: str) -> None:
        self._finish_stage()
        self._task = self._bar.add_task(STAGES.get(name, name), total=None, detail="")

    def step(self, event: StepEvent) -> None:
        seconds_left = self._left.after(event)
        done = event.index + 1
        detail = f"step {done}/{event.total}{_left(event, seconds_left)}"
        if self._task is not None:
            self._bar.update(self._task, total=event.total, completed=done, detail=detail)

    def notice(self, text: str) -> None:
        self._bar.console.print(f"note: {text}", markup=False, highlight=False)

    def result(self, facts: Mapping[str, Any], summary: str) -> None:
        self._finish_stage()
        super().result(facts, summary)

    def close(self) -> None:
        self._bar.stop()

    def _finish_stage(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, total=1, completed=1)
            self._bar.stop_task(self._task)
            self._task = None


class TimeLeft:
    """Estimates the seconds left in a loop of equal steps; the first step also loads weights, so it counts only alone."""

    def __init__(self) -> None:
        self._first_done = 0.0

    def after(self, event: StepEvent) -> float:
        now = time.monotonic()
        if event.index == 0:
            self._first_done = now
            return event.seconds * (event.total - 1)
        return (now - self._first_done) / event.index * (event.total - 1 - event.index)


def make_progress(*, as_json: bool, quiet: bool) -> Progress:
    if as_json:
        return JsonProgress()
    if quiet:
        return Progress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def _left(event: StepEvent, seconds: float) -> str:
    return f", {in_words(seconds)} left" if event.index + 1 < event.total else ""


def in_words(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
