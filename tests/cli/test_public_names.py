"""`import kinograph`: the public names, listed and importable, and nothing heavy at import."""
from __future__ import annotations

import subprocess
import sys

import pytest

import kinograph


def test_names_are_sorted_and_resolve() -> None:
    assert kinograph.__all__ == sorted(kinograph.__all__)
    assert dir(kinograph) == kinograph.__all__
    for name in kinograph.__all__:
        assert getattr(kinograph, name) is not None


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        _ = kinograph.generat


def test_import_is_light() -> None:
    script = (
        "import sys, kinograph; kinograph.MODELS, kinograph.TextToVideo; "
        "print([m for m in ('torch', 'av', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
