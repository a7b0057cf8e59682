"""A fast, stable identity for weight files, to be written beside what they generated."""
from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

WHOLE = 8 * 2**20  # files up to this size are read whole
EDGE = 2**20  # of larger ones: this much of both ends, which hold the safetensors header and the .pth directory,
BLOCK, NUM_BLOCKS = 2**16, 64  # and this many blocks, evenly spaced


def fingerprint(path: str | Path) -> str:
    """64 hex digits: sha256 over the size in bytes and over the contents, sampled where the file is larger than 8 MiB.

    Name, folder and time of the file do not count. It tells checkpoints apart; being sampled, it is no proof against a
    few damaged bytes in a large file.
    """
    path = Path(path)
    size = path.stat().st_size
    digest = hashlib.sha256(f"kinograph fingerprint 1, {size} bytes\n".encode())
    with path.open("rb") as file:
        for offset, length in _samples(size):
            file.seek(offset)
            digest.update(file.read(length))
    return digest.hexdigest()


def combined_fingerprint(paths: Iterable[str | Path]) -> str:
    """One fingerprint for a model in several files, in the order given; that of the file itself if there is one."""
    parts = [fingerprint(path) for path in paths]
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _samples(size: int) -> list[tuple[int, int]]:
    """(offset, length) of the parts that are read."""
    if size <= WHOLE:
        return [(0, size)]
    step = (size - 2 * EDGE) // NUM_BLOCKS
    blocks = [(EDGE + i * step, BLOCK) for i in range(NUM_BLOCKS)]
    return [(0, EDGE), *blocks, (size - EDGE, EDGE)]
