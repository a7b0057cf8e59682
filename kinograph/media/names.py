"""Names of written files: the published pattern, made safe for every file system."""
from __future__ import annotations

import unicodedata
from datetime import datetime

from kinograph.media.files import fit_bytes

PROMPT_CHARACTERS = 50
MAX_BYTES = 224  # below the 255 of file systems: `unique_path` and the temporary name of a file being written add to it
_FORBIDDEN = frozenset('<>:"/\\|?*')  # on Windows; POSIX forbids only the slash
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})


def default_name(
    task: str, *, width: int, height: int, prompt: str, time: datetime, ulysses_size: int = 1, suffix: str = ".mp4"
) -> str:
    """`{task}_{width}x{height}_{ulysses_size}_{prompt}_{YYYYmmdd_HHMMSS}{suffix}`, at most 224 bytes.

    The pattern of the published code, with `x` for its `*`; the prompt is cut to 50 characters, and further if these are
    too many bytes, so that the time is always whole.
    """
    start = safe_stem(f"{task}_{width}x{height}_{ulysses_size}")
    end = time.strftime("_%Y%m%d_%H%M%S") + suffix
    words = _replace_unsafe(unicodedata.normalize("NFC", prompt))[:PROMPT_CHARACTERS]
    words = fit_bytes(words, MAX_BYTES - len(start.encode()) - len(end.encode()) - 1)
    return f"{start}_{words}{end}" if words else start + end


def safe_stem(name: str) -> str:
    """`name` without anything that some file system refuses; never empty."""
    stem = fit_bytes(_replace_unsafe(unicodedata.normalize("NFC", name)), MAX_BYTES).strip(". ")
    if stem.split(".")[0].lower() in _DEVICES or stem.startswith("-"):  # a leading dash reads as an option
        stem = f"_{stem}"
    return stem or "_"


def _replace_unsafe(text: str) -> str:
    return "".join(_safe_character(char) for char in text)


def _safe_character(char: str) -> str:
    if char == "*":
        return "x"
    # Categories C*: control characters, invisible ones that can disguise a name, and lone surrogates, which have no bytes.
    if char.isspace() or char in _FORBIDDEN or unicodedata.category(char).startswith("C"):
        return "_"
    return char
