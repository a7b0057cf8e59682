"""`kinograph models`, and the sizes it tells."""
from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest

from kinograph.cli.main import main
from kinograph.cli.sizes import GIB, dit_parameters, in_billions, memory_needed, text_parameters
from kinograph.config import MODELS, UMT5_XXL

MANIFESTS = Path(__file__).parents[1] / "manifests"


def numbers_in(manifest: str) -> int:
    return sum(prod(shape) for _, shape in json.loads((MANIFESTS / f"{manifest}.json").read_text()).values())


@pytest.mark.parametrize("name", ["t2v-A14B", "i2v-A14B", "ti2v-5B"])
def test_parameters_are_those_of_the_published_weights(name: str) -> None:
    assert dit_parameters(MODELS[name].dit) == numbers_in(f"{name}.dit")


def test_text_parameters_are_those_of_the_published_weights() -> None:
    assert text_parameters(UMT5_XXL) == numbers_in("umt5-xxl-encoder")


def test_memory_estimate_knows_what_is_kept() -> None:
    released, kept = (memory_needed(MODELS["t2v-A14B"], bytes_per_weight=2, keep_all=keep_all) for keep_all in (False, True))
    assert 27 * GIB < released < kept - 27 * GIB  # one expert of two


def test_table_has_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(MODELS)
    assert next(line for line in lines if line.startswith("t2v-A14B ")).split()[4:7] == ["2", "x", "14.3"]


def test_json_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(rows) == set(MODELS)
    assert rows["ti2v-nano"]["weights"] == "bundled" and rows["s2v-14B"]["status"] == "available"
    assert rows["ti2v-5B"]["parameters"] == dit_parameters(MODELS["ti2v-5B"].dit)


def test_in_billions() -> None:
    assert (in_billions(14_288_491_584), in_billions(12_940_000)) == ("14.3 B", "12.9 M")
