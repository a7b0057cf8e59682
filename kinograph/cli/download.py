"""`kinograph download MODEL`: published weights from Hugging Face or ModelScope."""
from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kinograph.cli.arguments import OUTPUT, Flag, Parser, near_match, one_of
from kinograph.config import MODELS, ModelSpec
from kinograph.errors import RequestError

if TYPE_CHECKING:
    from kinograph.checkpoints.download import Download

WHERE = "where from and where to"
FLAGS = (
    Flag(name="source", group=WHERE, read=one_of("hf", "modelscope"), metavar="NAME", help="hf (default) or modelscope"),
    Flag(name="local_dir", group=WHERE, metavar="DIR", help="folder for the files (default: the cache of the source)"),
    Flag(name="revision", group=WHERE, metavar="REV", help="branch, tag or commit (default: the newest)"),
    Flag(name="json", group=OUTPUT, read=None, help="one JSON object a line on stdout"),
    Flag(name="quiet", group=OUTPUT, read=None, help="no progress"),
)
REPORT_SECONDS = 1.0  # between two lines of progress for machines


def run(argv: Sequence[str]) -> int:
    parser = Parser(
        "download",
        example="kinograph download ti2v-5B",
        description="Fetches the weights of a model, and only the files it needs. Stopped half-way, it goes on from there.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a name that `kinograph models` lists")
    parser.add_flags(FLAGS)
    values = parser.read(argv)
    as_json, quiet = "json" in values, "quiet" in values
    spec = find_spec(values)
    if spec.bundled:
        return _report_bundled(spec, as_json=as_json)
    from kinograph.checkpoints.download import carry_out, plan_download

    download = plan_download(
        spec, source=values.get("source", "hf"), local_dir=values.get("local_dir"), revision=values.get("revision")
    )
    _show_plan(download, as_json=as_json)
    received = download.bytes_left
    with make_meter(download, as_json=as_json, quiet=quiet) as meter:
        folder = carry_out(download, on_bytes=meter.add)
    if as_json:
        _say("result", path=str(folder), model=spec.name, bytes=download.total_bytes, received=received)
    else:
        usage = f"kinograph generate --task {spec.name}" + (f" --ckpt_dir {folder}" if "local_dir" in values else "")
        print(f"{spec.name} is complete in {folder}\nuse it with: {usage}")
    return 0


def find_spec(values: dict[str, Any]) -> ModelSpec:
    """The model by its name, or by the name of its repository."""
    if "model" not in values:
        raise RequestError("which model? For example: kinograph download ti2v-5B")
    name = values["model"]
    spec = MODELS.get(name) or next((row for row in MODELS.values() if row.hub == name), None)
    if spec is None:
        names = ", ".join(row.name for row in MODELS.values() if row.hub and row.available)
        raise RequestError(f"the model {name!r} is not known{near_match(name, MODELS)}; choose one of {names}")
    if not spec.available:
        raise RequestError(f"{spec.name} cannot be run by this version yet, so its files are not known; download another model")
    return spec


def _report_bundled(spec: ModelSpec, *, as_json: bool) -> int:
    from kinograph.checkpoints.layout import bundled_folder

    folder = bundled_folder(spec)
    if as_json:
        _say("result", path=str(folder), model=spec.name, bytes=0, received=0)
    else:
        print(f"{spec.name} ships with Kinograph; there is nothing to download (its weights are in {folder})")
    return 0


def _show_plan(download: Download, *, as_json: bool) -> None:
    from kinograph.checkpoints.download import in_bytes

    listing = download.listing
    if as_json:
        files = {file.path: file.size for file in listing.files}
        facts = {"source": listing.source, "repo": listing.repo, "revision": listing.revision, "files": files}
        _say("plan", **facts, bytes=download.total_bytes, bytes_left=download.bytes_left)
        return
    print(f"{listing.repo} at {listing.revision} from {listing.source}")
    for part, size in _sizes_by_part(download).items():
        print(f"  {part:<40} {in_bytes(size):>10}")
    here = download.total_bytes - download.bytes_left
    print(f"  {'together':<40} {in_bytes(download.total_bytes):>10}" + (f", of which {in_bytes(here)} are here already" if here else ""))
    print(f"to {download.destination.root}", flush=True)


def _sizes_by_part(download: Download) -> dict[str, int]:
    """Bytes of each file or folder at the top of the repository."""
    sizes: dict[str, int] = defaultdict(int)
    for file in download.listing.files:
        top, slash, _ = file.path.partition("/")
        sizes[top + slash if slash else _shards_together(top)] += file.size
    return sizes


def _shards_together(name: str) -> str:
    start = "diffusion_pytorch_model"
    return f"{start}*" if name.startswith(start) else name


# --------------------------------------------------------------------------------------------------------- progress


class Meter:
    """Counts bytes from several threads. This one says nothing; the others add to it. Use as a context manager."""

    def __init__(self, download: Download) -> None:
        self.total = download.total_bytes
        self.done = self.total - download.bytes_left
        self._lock = threading.Lock()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leaves the terminal as it was."""

    def add(self, count: int) -> None:
        """`count` more bytes are here; negative where a file starts over."""
        with self._lock:
            self.done += count
            self.show()

    def show(self) -> None:
        """Called with the lock held."""


class JsonMeter(Meter):
    def __init__(self, download: Download) -> None:
        super().__init__(download)
        self._next = 0.0

    def show(self) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REPORT_SECONDS
            _say("progress", bytes_done=self.done, bytes=self.total)


class LineMeter(Meter):
    """A line for each tenth. For logs and pipes."""

    def __init__(self, download: Download) -> None:
        super().__init__(download)
        self._shown = self._tenths()

    def _tenths(self) -> int:
        return self.done * 10 // self.total if self.total else 10

    def show(self) -> None:
        if self._tenths() > self._shown:
            self._shown = self._tenths()
            print(f"  {self._shown * 10} %", file=sys.stderr, flush=True)


class BarMeter(Meter):
    """A live bar on a terminal."""

    def __init__(self, download: Download) -> None:
        super().__init__(download)
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        self._bar = Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
        self._task = self._bar.add_task("", total=self.total, completed=self.done)

    def __enter__(self) -> Meter:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self) -> None:
        self._bar.update(self._task, completed=self.done)


def make_meter(download: Download, *, as_json: bool, quiet: bool) -> Meter:
    if as_json:
        return JsonMeter(download)
    if quiet:
        return Meter(download)
    return BarMeter(download) if sys.stderr.isatty() else LineMeter(download)


def _say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}, ensure_ascii=False), flush=True)
