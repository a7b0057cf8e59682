"""Very small models with drawn weights, known to the command line by name."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from seeded import load_seeded

from kinograph.checkpoints.layout import model_factory, model_names
from kinograph.checkpoints.save import save_checkpoint
from kinograph.config import MODELS, ModelSpec, tiny
from kinograph.training.tokenizer import train_tokenizer

TINY = replace(tiny(MODELS["ti2v-5B"]), default_negative_prompt="grey")
TINY_PAIR = replace(tiny(MODELS["t2v-A14B"]), default_negative_prompt="grey")  # two experts
TINY_S2V = replace(tiny(MODELS["s2v-14B"]), default_negative_prompt="grey")  # clips of 8 frames
TINY_ANIMATE = replace(tiny(MODELS["animate-14B"]), default_negative_prompt="grey", default_prompt="a person moves")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(TINY, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(TINY_PAIR, tmp_path_factory.mktemp("tiny_pair"))


@pytest.fixture(scope="session")
def tiny_s2v_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(TINY_S2V, tmp_path_factory.mktemp("tiny_s2v"))


@pytest.fixture(scope="session")
def tiny_animate_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(TINY_ANIMATE, tmp_path_factory.mktemp("tiny_animate"))


def saved(spec: ModelSpec, folder: Path) -> Path:
    """A checkpoint of `spec` in a folder inside `folder`."""
    train_tokenizer(["a red ball rolls to the right"], 300, folder / "tokenizer")
    models = {name: load_seeded(model_factory(spec, name)(), seed) for seed, name in enumerate(model_names(spec))}
    return save_checkpoint(folder / "weights", spec, models, tokenizer=folder / "tokenizer")


@pytest.fixture
def tiny_spec(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setitem(MODELS, TINY.name, TINY)
    return TINY


@pytest.fixture
def tiny_pair(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setitem(MODELS, TINY_PAIR.name, TINY_PAIR)
    return TINY_PAIR


@pytest.fixture
def tiny_animate(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setitem(MODELS, TINY_ANIMATE.name, TINY_ANIMATE)
    return TINY_ANIMATE


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return tmp_path


@pytest.fixture
def tiny_s2v(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setitem(MODELS, TINY_S2V.name, TINY_S2V)
    return TINY_S2V
