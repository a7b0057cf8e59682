"""Time left, and the bar."""
from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from kinograph.cli import progress


def step(index: int, total: int, seconds: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(index=index, total=total, seconds=seconds, expert="all_noise", sigma=0.5)


def test_time_left_forgets_the_slow_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    left = progress.TimeLeft()
    assert [left.after(step(index, 10, seconds=30.0)) for index in range(3)] == [270.0, 16.0, 14.0]


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_in_words(seconds: float, words: str) -> None:
    assert progress.in_words(seconds) == words


def test_lines_come_about_ten_times(capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress.LineProgress()
    for index in range(50):
        lines.step(step(index, 50))
    assert [line.split(",")[0].strip() for line in capsys.readouterr().err.splitlines()] == [f"step {n} of 50" for n in range(5, 51, 5)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_that_is_put_away(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.make_progress(as_json=False, quiet=False) as bar:
        bar.stage("denoise")
        bar.step(step(0, 2))
        bar.notice("a [bold] word")
        bar.step(step(1, 2))
        bar.result({}, "done")
        bar.begin({}, "2 of 2: another")
        bar.stage("denoise")
        bar.result({}, "done too")
    shown = terminal.getvalue()
    assert "denoising" in shown and "step 2/2" in shown and "note: a [bold] word" in shown
    assert shown.count("\x1b[?25h") >= shown.count("\x1b[?25l")  # the cursor is visible again
    assert capsys.readouterr().out == "done\ndone too\n" and "2 of 2: another" in shown
