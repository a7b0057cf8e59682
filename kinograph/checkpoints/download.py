"""Published weights from a hub to this machine: only the files a model needs, resumable, checked, complete or absent.

Files arrive in a folder `.kinograph-download` beside their place and are moved there when every one of them is whole and
has the right hash. What is interrupted continues where it stopped; until the end there is nothing to mistake for a checkpoint.

    --local_dir DIR       DIR in the published layout, with MANIFEST
    Hugging Face's cache  blobs and snapshots as huggingface_hub keeps them, shared with every program that uses it
"""
from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from kinograph.checkpoints import layout
from kinograph.checkpoints.fetch import RemoteFile, fetch, is_intact
from kinograph.checkpoints.hubs import HUBS, Listing, hub_cache, import_hub, modelscope_folder
from kinograph.config import Files, ModelSpec
from kinograph.errors import Cancelled, CheckpointError, RequestError

MANIFEST = "kinograph-download.json"
STAGING = ".kinograph-download"
FILES_AT_ONCE = 4
DIT_FILES = ("config.json", "diffusion_pytorch_model")  # beginnings of names


class Destination(Protocol):
    """Where files end up."""

    root: Path  # an existing or future folder on the disk that is filled

    def has(self, file: RemoteFile) -> bool:
        """Whether the file is there already, whole."""

    def finish(self, listing: Listing, fetched: dict[RemoteFile, Path]) -> Path:
        """Moves the fetched files to their places and returns the folder of the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Download:
    """What will be fetched, and where to."""

    spec: ModelSpec
    listing: Listing  # of the files that the model needs
    destination: Destination
    missing: tuple[RemoteFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.listing.files)

    @property
    def bytes_left(self) -> int:
        """To be received: without what an earlier run has left."""
        return sum(file.size - _arrived(self.staged(file)) for file in self.missing)

    @property
    def staging(self) -> Path:
        return self.destination.root / STAGING

    def staged(self, file: RemoteFile) -> Path:
        """Where the file lies once it is whole and checked; with `.part` added before. A file of another content has another name."""
        content = file.sha256 or file.git_sha1 or str(file.size)
        return self.staging / f"{content[:16]}-{file.path.replace('/', '--')}"


def plan_download(
    spec: ModelSpec, *, source: str = "hf", local_dir: str | Path | None = None, revision: str | None = None
) -> Download:
    """Asks the hub what there is and looks at what is here; nothing is fetched or written yet.

    Raises RequestError for an unknown source, a model without published weights, or too little room on the disk;
    CheckpointError where the hub cannot be reached or lacks files.
    """
    if source not in HUBS:
        raise RequestError(f"the source {source!r} is not known; choose one of {', '.join(HUBS)}")
    if not spec.hub:
        raise RequestError(f"{spec.name} has no published weights to download" + ("; it ships with Kinograph" if spec.bundled else ""))
    listing = needed(spec, HUBS[source](spec.hub, revision))
    destination = _destination(spec, listing, local_dir)
    missing = tuple(file for file in listing.files if not destination.has(file))
    download = Download(spec=spec, listing=listing, destination=destination, missing=missing)
    _check_room(download)
    return download


def carry_out(download: Download, *, on_bytes: Callable[[int], None] = lambda count: None) -> Path:
    """Fetches what is missing and returns the folder of the checkpoint. `on_bytes` may be called from several threads.

    Whatever is raised, Ctrl-C included, what has arrived is kept for the next time.
    """
    with _alone(download.staging):
        fetched = _fetch_all(download, on_bytes)
        return download.destination.finish(download.listing, fetched)


def needed(spec: ModelSpec, listing: Listing) -> Listing:
    """`listing` with only the files that a run of `spec` reads; CheckpointError if some are not in it."""
    folders = {"" if expert.folder == "." else f"{expert.folder}/": expert for expert in spec.experts}
    dit_starts = tuple(folder + name for folder in folders for name in DIT_FILES)
    others = [name for field in fields(Files) if (name := getattr(spec.files, field.name))]  # not every model has every part
    other_starts = tuple(f"{name}/" for name in others)
    chosen = tuple(
        file
        for file in listing.files
        if file.path in others
        or (file.path.startswith(other_starts) and not _is_duplicate(spec, file.path))
        or (file.path.startswith(dit_starts) and _is_dit(file.path))
    )
    paths = [file.path for file in chosen]
    absent = [name for name in others if not any(path == name or path.startswith(f"{name}/") for path in paths)]
    absent += [
        f"{folder}{DIT_FILES[1]}*.safetensors"
        for folder in folders
        if not any(path.startswith(folder + DIT_FILES[1]) and path.endswith(".safetensors") for path in paths)
    ]
    if absent:
        raise CheckpointError(
            f"{listing.repo} at revision {listing.asked!r} lacks {', '.join(absent)}; choose another --revision or --source"
        )
    return Listing(**{**vars(listing), "files": chosen})


def find_cached(spec: ModelSpec) -> Path | None:
    """The folder of `spec` in the Hugging Face cache, else in ModelScope's; None unless every file is there.

    Of several snapshots the one that `main` refers to comes first, then the newest. No network, no package needed.
    """
    if not spec.hub:
        return None
    folders = (*_snapshots(_hub_folder(spec.hub)), modelscope_folder(spec.hub))
    return next((folder for folder in folders if is_complete(spec, folder)), None)


def is_complete(spec: ModelSpec, folder: Path) -> bool:
    """Whether every file that `spec` needs lies in `folder`; their contents are `layout.check_folder`'s business."""
    try:
        files = [path for name in layout.model_names(spec) for path in layout.weight_files(spec, folder, name)]
    except (CheckpointError, OSError):
        return False
    return all(path.is_file() for path in (*files, layout.tokenizer_folder(spec, folder) / layout.TOKENIZER_FILE))


# -------------------------------------------------------------------------------------------------------- fetching


def _fetch_all(download: Download, on_bytes: Callable[[int], None]) -> dict[RemoteFile, Path]:
    """Every missing file, whole and checked, in the staging folder. The first failure stops the others."""
    stop = threading.Event()

    def count(received: int) -> None:
        if stop.is_set():
            raise Cancelled
        on_bytes(received)

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        tasks = [pool.submit(_fetch_one, file, download.staged(file), count) for file in download.missing]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return {file: download.staged(file) for file in download.missing}


def _fetch_one(file: RemoteFile, staged: Path, on_bytes: Callable[[int], None]) -> None:
    """`staged`, whole and with the right hash. A file that arrives damaged is fetched once more from its beginning."""
    if staged.exists():
        return
    part = staged.with_name(f"{staged.name}.part")
    for _ in range(2):
        if file.size == 0:
            part.touch()
        fetch(file, part, on_bytes=on_bytes)
        if is_intact(part, file):
            os.replace(part, staged)
            return
        on_bytes(-part.stat().st_size)
        part.unlink()
    raise CheckpointError(
        f"{file.path} arrived damaged twice: its content is not what the hub says it should be; try again later or use another --source"
    )


@contextmanager
def _alone(staging: Path) -> Iterator[None]:
    """Makes the staging folder; two downloads into one place would write over each other."""
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"cannot write to {staging.parent} ({error.strerror}); choose another folder with --local_dir") from error
    lock = FileLock(staging / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RequestError(f"another download into {staging.parent} is running; wait for it or stop it") from error
    try:
        yield
    finally:
        lock.release()


def _check_room(download: Download) -> None:
    place = download.destination.root
    while not place.exists():
        place = place.parent
    need, have = download.bytes_left, shutil.disk_usage(place).free
    if need > have:
        raise RequestError(
            f"{download.spec.name} needs {in_bytes(need)} more in {download.destination.root}, and {in_bytes(have)} are free there; "
            "free some space, or choose another disk with --local_dir"
        )


def in_bytes(count: int) -> str:
    """`57.1 GB`, `512 KB`: decimal units, as hubs and disks have them."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _arrived(staged: Path) -> int:
    part = staged.with_name(f"{staged.name}.part")
    return next((path.stat().st_size for path in (staged, part) if path.exists()), 0)


def _is_duplicate(spec: ModelSpec, path: str) -> bool:
    """Whether a file beside the speech encoder's weights holds the same once more, or what no run reads."""
    folder = spec.files.speech_encoder
    return bool(folder) and path.startswith(f"{folder}/") and not path.endswith((f"/{layout.SPEECH_FILE}", ".json"))


def _is_dit(path: str) -> bool:
    return path.endswith((".json", ".safetensors"))


# ---------------------------------------------------------------------------------------------------- destinations


def _destination(spec: ModelSpec, listing: Listing, local_dir: str | Path | None) -> Destination:
    if local_dir is not None:
        return LocalFolder(Path(local_dir).expanduser())
    return HubCache(spec.hub) if listing.source == "hf" else LocalFolder(modelscope_folder(spec.hub))


class LocalFolder:
    """A folder in the published layout. Its manifest, written last, spares the files a second reading."""

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise RequestError(f"{folder} is a file; name a folder with --local_dir")
        self.root = folder
        self._known = _read_manifest(folder / MANIFEST)

    def has(self, file: RemoteFile) -> bool:
        path = self.root / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        return self._known.get(file.path) == _identity(file) or is_intact(path, file)

    def finish(self, listing: Listing, fetched: dict[RemoteFile, Path]) -> Path:
        manifest = self.root / MANIFEST
        manifest.unlink(missing_ok=True)
        for file, staged in fetched.items():
            path = self.root / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, path)
        files = {file.path: _identity(file) for file in listing.files}
        facts = {"source": listing.source, "repo": listing.repo, "revision": listing.revision, "files": files}
        pending = self.root / STAGING / MANIFEST
        pending.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        os.replace(pending, manifest)
        shutil.rmtree(self.root / STAGING, ignore_errors=True)
        return self.root


class HubCache:
    """The Hugging Face cache. Blobs are put where huggingface_hub expects them; it makes the snapshot from them itself."""

    def __init__(self, repo: str) -> None:
        self.root = _hub_folder(repo)

    def has(self, file: RemoteFile) -> bool:
        blob = self._blob(file)
        return blob.is_file() and blob.stat().st_size == file.size  # named by their content, and only when whole

    def finish(self, listing: Listing, fetched: dict[RemoteFile, Path]) -> Path:
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        for file, staged in fetched.items():
            os.replace(staged, self._blob(file))
        self._make_snapshot(listing)
        shutil.rmtree(self.root / STAGING, ignore_errors=True)
        return self.root / "snapshots" / listing.revision

    def _make_snapshot(self, listing: Listing) -> None:
        hub = import_hub()
        endpoint = os.environ.get("HF_ENDPOINT") or None
        try:
            for file in listing.files:
                hub.hf_hub_download(listing.repo, file.path, revision=listing.revision, cache_dir=hub_cache(), endpoint=endpoint)
        except Exception as error:  # the errors of its transport differ between versions of huggingface_hub
            raise CheckpointError(
                f"every file has arrived, but the hub could not be asked where they belong ({error}); run the same command again to go on"
            ) from error
        if listing.asked != listing.revision:  # the name leads to this snapshot from now on, also without a network
            reference = self.root / "refs" / listing.asked
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(listing.revision, encoding="utf-8")

    def _blob(self, file: RemoteFile) -> Path:
        return self.root / "blobs" / str(file.sha256 or file.git_sha1)


def _hub_folder(repo: str) -> Path:
    return hub_cache() / f"models--{repo.replace('/', '--')}"


def _snapshots(folder: Path) -> Iterable[Path]:
    """The snapshots of a repository in the cache, the one of `main` first, then the newest."""
    found = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
    main = folder / "refs" / "main"
    commit = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    return sorted(found, key=lambda path: path.name != commit)


def _identity(file: RemoteFile) -> dict[str, Any]:
    return {name: value for name, value in asdict(file).items() if name in ("size", "sha256", "git_sha1") and value is not None}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return files if isinstance(files, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
