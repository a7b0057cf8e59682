"""One file over HTTP: continued where it stopped, in this run or in a later one, and checked against its hash.

The bytes go to a part file that only ever grows by what the server sent from its end on. huggingface_hub's own client
throws a partial file away when the process ends, which for weights of ten gigabytes a piece is too much.
"""
from __future__ import annotations

import errno
import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from kinograph import __version__
from kinograph.errors import CheckpointError, RequestError

ATTEMPTS = 6  # in a row that bring no new byte
LONGEST_PAUSE = 15.0  # seconds
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20
PASSING = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a hub. `sha256` is of the content; `git_sha1` of a git blob of it; either may be unknown."""

    path: str  # inside the repository, with forward slashes
    url: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)  # with the token, where there is one


def fetch(file: RemoteFile, part: Path, *, on_bytes: Callable[[int], None]) -> None:
    """Completes `part` to the size of `file`, from whatever it already holds.

    `on_bytes` gets the bytes that each step adds (negative where the server made it start over); what it raises stops the
    download and keeps the part. Raises CheckpointError after several attempts in a row without a new byte, or where the
    server refuses; RequestError where the disk does.
    """
    reached, failures = _size(part), 0
    while (have := _size(part)) < file.size:
        try:
            _receive(file, part, have, on_bytes)
            problem = f"it stopped after {_size(part):,} of {file.size:,} bytes"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is not a beginning of this file
                on_bytes(-have)
                part.unlink()
            elif error.code not in PASSING:
                raise CheckpointError(_refusal(file, error)) from error
            problem = f"status {error.code}"
        except (OSError, http.client.HTTPException) as error:  # connections that fail, drop or stall
            problem = str(getattr(error, "reason", None) or error) or type(error).__name__
        failures = 0 if _size(part) > reached else failures + 1
        reached = max(reached, _size(part))
        if failures == ATTEMPTS:
            raise CheckpointError(
                f"the download of {file.path} does not get any further ({problem}); "
                "what has arrived is kept: run the same command again to go on"
            )
        if failures:
            time.sleep(min(2.0 ** (failures - 1), LONGEST_PAUSE))


def is_intact(path: Path, file: RemoteFile) -> bool:
    """Whether `path` has the size and the hash of `file`; the size alone where the hub tells no hash."""
    if _size(path) != file.size:
        return False
    if file.sha256:
        return _digest(path, hashlib.sha256()) == file.sha256.lower()
    if file.git_sha1:
        return _digest(path, hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)) == file.git_sha1.lower()
    return True


def _receive(file: RemoteFile, part: Path, have: int, on_bytes: Callable[[int], None]) -> None:
    request = urllib.request.Request(file.url, headers={"User-Agent": f"kinograph/{__version__}"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    for name, value in file.headers.items():
        request.add_unredirected_header(name, value)  # the token is for the hub, not for the storage it redirects to
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, _opened(part) as out:
        if have and response.status != 206:  # it sends the whole file again
            out.truncate(0)
            on_bytes(-have)
            have = 0
        elif have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise http.client.HTTPException(f"asked for bytes from {have}, it answered {response.headers.get('Content-Range')!r}")
        while have < file.size and (chunk := response.read1(min(CHUNK, file.size - have))):
            try:
                out.write(chunk)
                out.flush()  # what is counted is what a later run finds
            except OSError as error:
                raise RequestError(_disk_problem(part, error)) from error
            have += len(chunk)
            on_bytes(len(chunk))


def _opened(part: Path) -> BinaryIO:
    try:
        return part.open("ab")
    except OSError as error:
        raise RequestError(_disk_problem(part, error)) from error


def _disk_problem(part: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk is full while writing to {part.parent}; free some space and run the same command again to go on"
    return f"cannot write to {part.parent} ({error.strerror}); choose another folder with --local_dir"


def _refusal(file: RemoteFile, error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403):
        return f"the hub does not let this account download {file.path} (status {error.code}); check the token"
    return f"the hub does not give out {file.path} (status {error.code}); check the revision and the address of the hub"


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as content:
        while block := content.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
