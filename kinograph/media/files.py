"""Where results go and why inputs cannot be read: free names, early checks, files that appear only when complete."""
from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from kinograph.errors import MediaError

MAX_NAME_BYTES = 255  # of one path component, on every common file system
_PROBE_BYTES = 1 << 20
_LFS_POINTER = b"version https://git-lfs"
_HTML = (b"<!doctype html", b"<html")
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no EDQUOT


def unique_path(path: str | os.PathLike[str]) -> Path:
    """`path` if nothing is there (or an empty folder), else the first free of `name_2.ext`, `name_3.ext`, ..."""
    path = Path(path)
    candidate, number = path, 2
    while _is_taken(candidate):
        ending = f"_{number}{path.suffix}"
        candidate = path.with_name(fit_bytes(path.stem, MAX_NAME_BYTES - len(os.fsencode(ending))) + ending)
        number += 1
    return candidate


def check_folder_writable(folder: Path) -> None:
    """Create `folder` if missing and write a file of 1 MB into it, so that neither permissions nor quotas surprise later."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:  # os.access is wrong for root, ACLs and network folders
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
    except OSError as error:
        raise write_error(folder, error) from error


class PendingOutput:
    """A file or folder under a temporary name beside `path`: `commit` gives it its name, `discard` leaves nothing.

    The temporary name is `.name.<random>.partial.ext`, in the same folder so that the rename is atomic, and different for
    every writer so that two runs never share one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        ending = f".{secrets.token_hex(4)}.partial{path.suffix}"
        self.partial = path.with_name("." + fit_bytes(path.stem, MAX_NAME_BYTES - 1 - len(os.fsencode(ending))) + ending)

    def commit(self, *, overwrite: bool) -> Path:
        """Flush to the disk, rename, return the final path: `path`, or a free name if something appeared there meanwhile."""
        written = sorted(self.partial.iterdir()) if self.partial.is_dir() else [self.partial]
        for file in written:
            _fsync(file)
        final = self.path if overwrite else unique_path(self.path)
        if final.is_dir():
            final.rmdir()  # an empty one: Windows does not rename over it
        os.replace(self.partial, final)
        return final

    def discard(self) -> None:
        if self.partial.is_dir():
            shutil.rmtree(self.partial, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                self.partial.unlink()


def write_error(path: Path, error: Exception) -> MediaError:
    """The sentence for a failed write."""
    code = getattr(error, "errno", None)
    if code in _DISK_FULL:
        return MediaError(f"the disk is full, or over its quota, while writing {path}; free some space or choose another folder")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MediaError(f"no permission to write {path}; choose another folder")
    if code in (errno.ENOTDIR, errno.EEXIST):
        return MediaError(f"cannot write {path}, because a part of that path is a file and not a folder; choose another path")
    reason = getattr(error, "strerror", None) or error
    return MediaError(f"cannot write {path} ({reason}); choose another path")


def read_error(path: Path, error: Exception, *, kind: str) -> MediaError:
    """The sentence for a file that could not be read as a `kind` ("picture", "video"), from a look at its first bytes."""
    if not path.exists():
        return MediaError(f"there is no {kind} {path}; check the path")
    if path.is_dir():
        return MediaError(f"{path} is a folder; name a {kind} file in it")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as unreadable:
        return MediaError(f"cannot open {path} ({unreadable.strerror}); check its permissions")
    if not head:
        return MediaError(f"{path} is empty; download or copy it again")
    if head.startswith(_LFS_POINTER):
        return MediaError(f"{path} is a git-lfs pointer and not the {kind} itself; run: git lfs pull")
    if head.lstrip().lower().startswith(_HTML):
        return MediaError(f"{path} is a web page and not a {kind}; download the {kind} itself")
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return MediaError(f"{path} is a HEIC picture, which cannot be read here; save it as JPEG or PNG")
    return MediaError(f"cannot read {path} as a {kind} ({error}); it is damaged or of an unknown format")


def fit_bytes(text: str, limit: int) -> str:
    """`text`, shortened to at most `limit` bytes on disk without cutting a character."""
    return os.fsencode(text)[: max(limit, 0)].decode("utf-8", "ignore") if len(os.fsencode(text)) > limit else text


def _is_taken(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return os.path.lexists(path)


def _fsync(path: Path) -> None:
    # Without it a crash soon after the rename can leave a file with the right name and no content.
    with path.open("rb+") as file:
        os.fsync(file.fileno())
