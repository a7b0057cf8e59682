"""The ledger of a folder of videos: which video of which batch has which name and seed, so that a batch can go on.

    DIR/.kinograph/batch.json     name, seed and extended prompt by the identity of a video; written before the first is made
    DIR/.kinograph/embeddings/    embedded prompts
    DIR/.kinograph/lock           held by the one batch that works in DIR

The identity of a video is what was asked for, without the names of files. A row that moves within its file keeps its video;
one that is changed gets a new one. Whether a video is finished is not in the ledger: it is finished when it lies under its
name with the recipe that is expected, since files get their names only when they are complete.
"""
from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kinograph.errors import MediaError, RequestError

HIDDEN = ".kinograph"
FORMAT = 1
WORDS = 40  # characters of the prompt in a name


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One video, as it was first listed."""

    name: str
    seed: int
    prompt: str | None = None  # as extended, if it was
    extended: Mapping[str, str | None] = field(default_factory=dict)  # where that came from, for the recipe


class Ledger:
    """The entries of `folder`, by identity. Use within `alone(folder)`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / HIDDEN / "batch.json"
        self._entries = self._read()
        self._seen: Counter[str] = Counter()

    def identity(self, facts: Mapping[str, Any]) -> str:
        """Of a video that is asked for; the same facts once more mean one more video."""
        digest = hashlib.sha256(json.dumps(_nameless(facts), sort_keys=True).encode()).hexdigest()[:32]
        self._seen[digest] += 1
        return f"{digest}-{self._seen[digest]}"

    def entry(self, identity: str, *, row: int, prompt: str, seed: int, suffix: str) -> Entry:
        """The entry of that identity; a new one has `seed` and a name of its own made from the rest."""
        if identity not in self._entries:
            self._entries[identity] = Entry(name=self._free_name(row, prompt, seed, suffix), seed=seed)
        return self._entries[identity]

    def update(self, identity: str, entry: Entry) -> None:
        self._entries[identity] = entry

    def save(self) -> None:
        """Writes the ledger, whole or not at all."""
        from kinograph.media.files import PendingOutput, write_error

        pending = PendingOutput(self._path)
        contents = {"kinograph_batch": FORMAT, "videos": {identity: asdict(entry) for identity, entry in self._entries.items()}}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            pending.partial.write_text(json.dumps(contents, indent=1), encoding="utf-8")
            pending.commit(overwrite=True)
        except OSError as error:
            pending.discard()
            raise write_error(self._path, error) from error

    def remove_leftovers(self) -> None:
        """Removes the unfinished files of a run that was killed, of the videos in this ledger only."""
        stems = {Path(entry.name).stem for entry in self._entries.values()}
        for partial in self.folder.glob(".*.partial.*"):
            if partial.name[1:].rsplit(".", 3)[0] in stems:
                partial.unlink(missing_ok=True)

    def _free_name(self, row: int, prompt: str, seed: int, suffix: str) -> str:
        """`003_a_red_ball_7.mp4`, with a number added where another entry has that name."""
        from kinograph.media import safe_stem

        stem = f"{safe_stem(f'{row:03d}_{prompt[:WORDS].strip()}')}_{seed}"
        taken = {entry.name for entry in self._entries.values()}
        names = (f"{stem}{ending}{suffix}" for ending in ["", *(f"_{number}" for number in range(2, len(taken) + 2))])
        return next(name for name in names if name not in taken)

    def _read(self) -> dict[str, Entry]:
        try:
            contents = json.loads(self._path.read_text(encoding="utf-8"))
            if contents["kinograph_batch"] != FORMAT:
                raise RequestError(f"{self._path} was written by another version of Kinograph; choose another --output_dir")
            return {identity: Entry(**entry) for identity, entry in contents["videos"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(f"{self._path} is damaged ({error}); remove it, or choose another --output_dir") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Two batches in one folder would make the same videos twice. The lock ends with the process, however that ends."""
    from filelock import FileLock, Timeout

    from kinograph.media.files import write_error

    lock = FileLock(folder / HIDDEN / "lock")
    try:
        (folder / HIDDEN).mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RequestError(f"another batch is at work in {folder}; wait for it, or choose another --output_dir") from None
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def is_finished(path: Path, expected: Mapping[str, Any]) -> bool:
    """Whether `path` holds the video whose described request is `expected`, with the prompt before extension.

    Raises MediaError if something else is there.
    """
    from kinograph.recipe import read_recipe

    if not path.exists():
        return False
    try:
        recipe = read_recipe(path)
    except MediaError:
        recipe = None
    if recipe is not None:
        asked = {**recipe.request, "prompt": recipe.prompt_extension.get("original", recipe.request.get("prompt"))}
        if _nameless(asked) == _nameless(expected):
            return True
    raise MediaError(f"{path} exists and is not the video of this row; move it, choose another --output_dir, or add --overwrite")


def _nameless(value: Any) -> Any:
    """`value` with described files reduced to their content: where they lie changes nothing."""
    if isinstance(value, Mapping):
        if "sha256" in value:
            return value["sha256"]
        return {name: _nameless(each) for name, each in value.items() if name != "path"}
    return [_nameless(each) for each in value] if isinstance(value, (list, tuple)) else value
