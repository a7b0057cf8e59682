"""One tiny checkpoint in the published layout, and copies of it to damage."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.write_random_checkpoint import write_random_checkpoint
from kinograph.config import T2V_A14B, TI2V_5B, tiny


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    """Read only: the tiny ti2v-5B and t2v-A14B, in folders "ti2v" and "t2v"."""
    root = tmp_path_factory.mktemp("checkpoints")
    write_random_checkpoint(tiny(TI2V_5B), root / "ti2v", shard_bytes=60_000)
    write_random_checkpoint(tiny(T2V_A14B), root / "t2v")
    return root


@pytest.fixture
def ti2v(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine / "ti2v", tmp_path / "ti2v"))


@pytest.fixture
def t2v(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine / "t2v", tmp_path / "t2v"))
