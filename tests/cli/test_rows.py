"""Files of prompts: what each kind may hold, and the sentence for each kind of bad row."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from kinograph.cli.rows import BadRow, Row, read_rows
from kinograph.errors import RequestError


def rows(path: Path, text: str) -> list[Row | BadRow]:
    path.write_text(text, encoding="utf-8")
    return read_rows(str(path))


def test_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    found = rows(path, "\ufeff# balls\na red ball\r\n\n  a box, turning  \n# the end\n")
    assert [(row.number, row.source, row.values) for row in found] == [
        (1, f"{path}:2", {"prompt": "a red ball"}),
        (2, f"{path}:4", {"prompt": "a box, turning"}),
    ]


def test_objects_have_fields_or_flags(tmp_path: Path) -> None:
    found = rows(
        tmp_path / "a.jsonl",
        '{"prompt": "a", "num_frames": 5, "seed": 3, "size": [96, 64], "image": "first.png"}\n'
        '{"prompt": "b", "frame_num": "5", "width": 96, "height": 64, "guidance_scale": {"high_noise": 4, "low_noise": 3}}\n'
        '{"prompt": "c\\u2028d", "negative_prompt": "", "shift": null}\n',
    )
    assert [row.values for row in found] == [
        {"prompt": "a", "frame_num": 5, "base_seed": 3, "size": (96, 64), "image": str(tmp_path / "first.png")},
        {"prompt": "b", "frame_num": 5, "size": (96, 64), "sample_guide_scale": {"high_noise": 4.0, "low_noise": 3.0}},
        {"prompt": "c\u2028d", "negative_prompt": ""},
    ]


def test_a_table_has_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    found = rows(path, 'prompt,seed,steps\n'.replace("steps", "num_steps") + '"a ball,\nrolling",1,\n\n,,\na box,,4\n')
    assert [(row.source, row.values) for row in found] == [
        (f"{path}:2", {"prompt": "a ball,\nrolling", "base_seed": 1}),
        (f"{path}:6", {"prompt": "a box", "sample_steps": 4}),
    ]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.jsonl", "{", r"this is not JSON"),
        ("a.jsonl", '"a ball"', r"a row is an object"),
        ("a.jsonl", '{"promt": "a"}', r"there is no setting 'promt' \(did you mean prompt\?\)"),
        ("a.jsonl", '{"prompt": "a", "device": "cpu"}', r"'device' is the same for all rows; give it once, as --device"),
        ("a.jsonl", '{"prompt": 3}', r"prompt must be a text; got 3"),
        ("a.jsonl", '{"prompt": "a", "num_frames": 5.5}', r"num_frames must be a whole number; got '5.5'"),
        ("a.jsonl", '{"prompt": "a", "seed": true}', r"seed must be a whole number"),
        ("a.jsonl", '{"prompt": "a", "shift": NaN}', r"shift must be a finite number"),
        ("a.jsonl", '{"prompt": "a", "size": {"w": 96}}', r"size must be WIDTH\*HEIGHT"),
        ("a.jsonl", '{"prompt": "a", "width": 96}', r"give both width and height"),
        ("a.jsonl", '{"prompt": "a", "width": 96, "height": 64, "size": "96*64"}', r"the size is given twice"),
        ("a.jsonl", '{"prompt": "a", "seed": 1, "base_seed": 2}', r"'base_seed' is given twice, under two names"),
        ("a.csv", "prompt,seed\na ball, rolling,1\n", r"more cells than the header"),
        ("a.csv", "prompt,seed\na ball,one\n", r"seed must be a whole number, or -1 to draw one; got 'one'"),
    ],
)
def test_bad_rows(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (bad,) = rows(tmp_path / name, text)
    assert isinstance(bad, BadRow) and re.search(sentence, bad.problem)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"# nothing\n\n", r"has no prompts"),
        ("a.csv", b"", r"has no prompts"),
        ("a.txt", "für".encode("latin-1"), r"not in UTF-8"),
        ("a.csv", b"prompt,sed\na,1\n", r"a.csv:1: there is no setting 'sed' \(did you mean seed\?\)"),
        ("a.xlsx", b"", r"prompts are read from .txt, .jsonl, .csv files"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=sentence):
        read_rows(str(tmp_path / name))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file"):
        read_rows(str(tmp_path / "a.txt"))


def test_sounds_and_switches(tmp_path: Path) -> None:
    found = rows(
        tmp_path / "a.jsonl",
        '{"image": "a.png", "audio": "talk.wav", "pose_video": "pose.mp4", "start_from_ref": true}\n'
        '{"image": "a.png", "tts_text": "hello", "enable_tts": "maybe"}\n',
    )
    assert isinstance(found[0], Row) and isinstance(found[1], BadRow)
    files = {"image": "a.png", "audio": "talk.wav", "pose_video": "pose.mp4"}
    assert found[0].values == {**{name: str(tmp_path / file) for name, file in files.items()}, "start_from_ref": True}
    assert found[1].problem == 'enable_tts must be true or false; got "maybe"'
