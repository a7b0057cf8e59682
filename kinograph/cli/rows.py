"""Files of prompts: .txt (one a line, `#` begins a comment), .jsonl (an object a line), .csv (a header, then a row a video).

A row has the settings that may differ between the videos of a batch: what fills the request. They are named as the flags are,
or as the fields of the request. Files and folders are looked for from the folder of the file.
"""
from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinograph.cli.arguments import GENERATE_FLAGS, Flag, near_match, yes_or_no
from kinograph.errors import RequestError

SIZE = next(flag for flag in GENERATE_FLAGS if flag.name == "size")
ROW_FLAGS = tuple(flag for flag in GENERATE_FLAGS if any(name.startswith("request.") for name in flag.fills) and flag.name != "preset")
PATHS = ("image", "last_image", "audio", "pose_video", "tts_prompt_audio", "src_root_path")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The settings of one row by the names of their flags, as the parser would have read them."""

    number: int  # from 1, of the rows that are neither empty nor comments
    source: str  # file:line
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be used, and why."""

    number: int
    source: str
    problem: str


def read_rows(path: str) -> list[Row | BadRow]:
    """Every row of the file, good or bad. Raises RequestError where the file itself is wrong."""
    file = Path(path)
    read = READERS.get(file.suffix.lower())
    if read is None:
        raise RequestError(f"prompts are read from {', '.join(READERS)} files; got --prompts {path}")
    try:
        text = file.read_text(encoding="utf-8-sig")  # spreadsheets put a mark before the first character
    except UnicodeDecodeError:
        raise RequestError(f"{path} is not in UTF-8; save it in that encoding") from None
    except OSError as error:
        raise RequestError(f"cannot read --prompts {path} ({error.strerror}); check the path") from None
    rows = [
        _row(number, f"{path}:{line}", record, file.parent) for number, (line, record) in enumerate(read(text, path), start=1)
    ]
    if not rows:
        raise RequestError(f"{path} has no prompts in it")
    return rows


# ------------------------------------------------------------------------------------------------------- the kinds
# Each gives (line, settings by name or the sentence that says what is wrong with the line).

Record = Mapping[str, Any] | str


def _lines_of_text(text: str, path: str) -> Iterator[tuple[int, Record]]:
    for number, line in _lines(text):
        if not line.startswith("#"):
            yield number, {"prompt": line}


def _objects(text: str, path: str) -> Iterator[tuple[int, Record]]:
    for number, line in _lines(text):
        try:
            record = json.loads(line)
        except ValueError as error:
            yield number, f"this is not JSON ({error})"
            continue
        yield number, record if isinstance(record, dict) else f'a row is an object, such as {{"prompt": "a red ball"}}; got {line[:40]}'


def _table(text: str, path: str) -> Iterator[tuple[int, Record]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="")
    for name in reader.fieldnames or ():
        if problem := _unknown(name.strip()):
            raise RequestError(f"{path}:1: {problem}")
    for cells in reader:
        line = reader.line_num - sum(value.count("\n") for value in cells.values() if isinstance(value, str))  # where the row begins
        if "" in cells:
            yield line, "there are more cells than the header has; put a text with commas in double quotes"
            continue
        # An empty cell leaves the setting open; a table has no other way to say so.
        record = {name.strip(): value.strip() for name, value in cells.items() if value and value.strip()}
        if record:
            yield line, record


READERS: dict[str, Callable[[str, str], Iterator[tuple[int, Record]]]] = {".txt": _lines_of_text, ".jsonl": _objects, ".csv": _table}


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines, which also splits at characters inside of JSON strings
        if line.strip():
            yield number, line.strip()


# ---------------------------------------------------------------------------------------------------------- values


def _row(number: int, source: str, record: Record, folder: Path) -> Row | BadRow:
    if isinstance(record, str):
        return BadRow(number=number, source=source, problem=record)
    try:
        return Row(number=number, source=source, values=values_of(record, folder))
    except RequestError as error:
        return BadRow(number=number, source=source, problem=str(error))


def values_of(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a row as the parser would give them; null leaves one open. Raises RequestError for what is not a setting."""
    values: dict[str, Any] = {}
    for name, value in _with_size(record).items():
        if value is None:
            continue
        if problem := _unknown(name):
            raise RequestError(problem)
        flag = NAMES[name]
        if flag.name in values:
            raise RequestError(f"{name!r} is given twice, under two names; leave one out")
        values[flag.name] = _value(flag, name, value)
    return values | {name: str(folder / values[name]) for name in PATHS if name in values}


def _with_size(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with its width and height as the one flag that holds both."""
    sides = [record.get("width"), record.get("height")]
    rest = {name: value for name, value in record.items() if name not in ("width", "height")}
    if sides == [None, None]:
        return rest
    if None in sides:
        raise RequestError("give both width and height, or neither")
    if "size" in rest:
        raise RequestError("the size is given twice, as size and as width and height; leave one out")
    return rest | {"size": "*".join(map(str, sides))}


def _names() -> dict[str, Flag]:
    """Every name of a setting -> its flag: the names of the flag, and the field that it fills."""
    names = {name: flag for flag in ROW_FLAGS for name in (flag.name, *flag.other_names)}
    fields = {flag.fills[0].removeprefix("request."): flag for flag in ROW_FLAGS if len(flag.fills) == 1}
    return fields | names


NAMES = _names()


def _unknown(name: str) -> str | None:
    if name in NAMES or name in ("width", "height"):
        return None
    if any(name in (flag.name, *flag.other_names) for flag in GENERATE_FLAGS):
        return f"{name!r} is the same for all rows; give it once, as --{name}"
    return f"there is no setting {name!r}{near_match(name, [*NAMES, 'width', 'height'])}"


def _value(flag: Flag, name: str, value: Any) -> Any:
    if flag.read is None:
        return flag.means[0 if _is_on(name, value) else 1]
    if flag.read is str and not isinstance(value, str):
        raise RequestError(f"{name} must be a text; got {json.dumps(value)}")
    return flag.value(_as_text(value), called=name)


def _is_on(name: str, value: Any) -> bool:
    try:
        return yes_or_no(_as_text(value))
    except ValueError as problem:
        raise RequestError(f"{name} {problem}; got {json.dumps(value)}") from None


def _as_text(value: Any) -> str:
    """What the flag would be given for a value of JSON: `[832, 480]` is 832*480, `{"high_noise": 4}` high_noise=4."""
    if isinstance(value, list):
        return "*".join(map(_as_text, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={_as_text(each)}" for name, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)
