"""The examples run as they are."""
from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from kinograph.media import read_video

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_example(name: str, tmp_path: Path) -> None:
    path = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](tmp_path / f"{name}.mp4")
    frames, fps = read_video(path)
    assert len(frames) >= 17 and fps in (8, 16)
