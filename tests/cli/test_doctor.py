"""`kinograph doctor` reports, whatever is broken."""
from __future__ import annotations

import json

import pytest

from kinograph.cli import doctor
from kinograph.cli.main import main
from kinograph.cli.sizes import GIB
from kinograph.config import MODELS


def test_report_covers_every_section_and_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {finding["section"] for finding in findings} == set(doctor.CHECKS)
    text = "\n".join(finding["text"] for finding in findings)
    assert all(f"{name}:" in text for name in MODELS)
    assert "failed" not in text


def test_text_has_sections(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(doctor.CHECKS)


def test_a_broken_check_is_a_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> doctor.Lines:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setitem(doctor.CHECKS, "devices", broken)
    assert main(["doctor"]) == 0
    assert "MISSING  this check failed: ImportError: libcuda.so.1" in capsys.readouterr().out


def test_a_missing_encoder_comes_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ENCODERS", {"libnothing": ".mp4"})
    status, text = list(doctor.check_video())[-1]
    assert status == doctor.MISSING and "pip install" in text


def test_missing_extras_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: ["torch>=2.6", 'no-such-package>=1; extra == "audio"'])
    assert list(doctor.check_extras()) == [(doctor.NOTE, "audio: without no-such-package; to have it: pip install 'kinograph[audio]'")]


@pytest.mark.parametrize(
    ("memory", "status", "words"),
    [
        (200 * GIB, doctor.OK, "fits"),
        (60 * GIB, doctor.OK, "released after its stage"),
        (8 * GIB, doctor.NOTE, "needs about"),
        (None, doctor.NOTE, "not known"),
    ],
)
def test_fit(memory: int | None, status: str, words: str) -> None:
    found, text = doctor.fit(MODELS["t2v-A14B"], "cuda:0", memory, 2)
    assert found == status and words in text
