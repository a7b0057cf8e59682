"""The command itself: light to start, one sentence and exit status 2 for what the user can mend, 130 when stopped."""
from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kinograph
from kinograph.cli import models
from kinograph.cli.main import COMMANDS, main
from kinograph.errors import Cancelled


def test_help_is_quick_and_imports_no_torch() -> None:
    """`kinograph --help` is to take less than half a second; twice that is allowed here, for a busy test machine."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "kinograph", "--help"], check=True, capture_output=True)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in COMMANDS), ["models"]])
def test_help_needs_no_heavy_import(argv: list[str]) -> None:
    script = (
        "import sys; from kinograph.cli.main import main\n"
        f"try: main({argv!r})\n"
        "except SystemExit: pass\n"
        "print('HEAVY', [m for m in ('torch', 'av', 'numpy', 'rich', 'triton') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_starts_with_a_working_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: kinograph {name}")


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("kinograph generate ") and all(f"\n  {name} " in out for name in COMMANDS)


def test_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.search(rf'^version = "{re.escape(kinograph.__version__)}"$', project, re.MULTILINE)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kinograph {kinograph.__version__}\n"


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generat"]) == 2
    assert "there is no command 'generat' (did you mean generate?)" in capsys.readouterr().err


def test_errors_are_one_json_object_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json", "--sizes"]) == 2
    captured = capsys.readouterr()
    event = json.loads(captured.out)
    assert (event["event"], event["kind"]) == ("error", "RequestError")
    assert event["message"] in captured.err


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, Cancelled])
def test_interrupted(interrupt: type[BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(argv: list[str]) -> int:
        raise interrupt

    monkeypatch.setattr(models, "run", stop)
    assert main(["models"]) == 130
    assert "stopped" in capsys.readouterr().err
