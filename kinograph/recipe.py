"""The recipe: everything needed to make a result again, kept inside the file that it made."""
from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kinograph import __version__
from kinograph.errors import MediaError
from kinograph.media import Sound, read_metadata
from kinograph.requests import VideoRequest

FORMAT = 1  # raised when an older Kinograph could misread the recipe
_MARK = "kinograph_recipe"
_MEDIA_FIELDS = ("image", "video", "audio", "material")  # last words of the names of fields that hold files, or a folder of them


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What was asked, what was decided, with which weights, on what. All values are plain JSON.

    `write_video(path, ..., metadata=recipe.to_json())` keeps it in the file; `read_recipe(path)` gets it back.
    """

    model: str
    request: Mapping[str, Any]  # every field of the request; files as {"path", "sha256"}
    plan: Mapping[str, Any]  # sizes, frames, steps, the seed really used
    runtime: Mapping[str, Any] = field(default_factory=dict)  # device name, dtype, attention
    weights: Mapping[str, str] = field(default_factory=dict)  # component -> short hash
    loras: Sequence[Mapping[str, Any]] = field(default_factory=list)  # of each: path, fingerprint, strength by expert, phases, mode
    prompt_extension: Mapping[str, str | None] = field(default_factory=dict)  # the original prompt, and what extended it
    libraries: Mapping[str, str | None] = field(default_factory=dict)
    kinograph: str = ""
    created: str = ""  # ISO 8601, UTC

    @classmethod
    def now(
        cls,
        *,
        model: str,
        request: Any,
        plan: Any,
        runtime: Mapping[str, Any] | None = None,
        weights: Mapping[str, str] | None = None,
        loras: Sequence[Mapping[str, Any]] = (),
    ) -> Recipe:
        """The recipe of a run on this installation. `request` and `plan`: dataclasses, or what `describe` made of them."""
        return cls(
            model=model,
            request=describe(request),
            plan=describe(plan),
            runtime=describe(runtime or {}),
            weights=dict(weights or {}),
            loras=describe(list(loras)),
            libraries={"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
            kinograph=__version__,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def to_json(self) -> str:
        """One line, readable as UTF-8; equal recipes give equal text."""
        text = json.dumps({_MARK: FORMAT, **asdict(self)}, ensure_ascii=False, allow_nan=False)
        # A prompt from a terminal with another encoding may hold lone surrogates, which UTF-8 cannot carry. Inside a JSON
        # string the escape that this writes means the same character.
        return text.encode("utf-8", "backslashreplace").decode("utf-8")

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Inverse of `to_json`. Raises MediaError if `text` is not a recipe, or of a newer format than this version reads."""
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not isinstance(values, dict) or not isinstance(values.get(_MARK), int):
            raise MediaError(f"this text is not a Kinograph recipe: {text[:60]!r}")
        if values[_MARK] > FORMAT:
            version = values.get("kinograph")
            raise MediaError(f"the recipe was written by a newer Kinograph ({version}); update with: pip install -U kinograph")
        known = {each.name for each in fields(cls)}
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as error:
            raise MediaError(f"the recipe is incomplete ({error}); it was changed after it was written") from error


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe inside a file that Kinograph wrote. Raises MediaError if there is none."""
    text = read_metadata(path)
    if not text or _MARK not in text:
        raise MediaError(
            f"{path} has no recipe in it; the .mp4, .mov, .webm, .gif and .png files that Kinograph writes have one, "
            "until another program writes them anew"
        )
    return Recipe.from_json(text)


# ---------------------------------------------------------------------------------------------------- plain JSON


def describe_request(request: VideoRequest) -> dict[str, Any]:
    """All fields of the request as plain JSON, files as {"path", "sha256"}."""
    return describe(request)


def describe(value: Any) -> Any:
    """`value` as plain JSON.

    Files, which are paths and the strings in fields for media (`image`, `audio`, `pose_video`), become {"path", "sha256"}; pictures,
    tensors and sounds in memory {"size", "shape" or "seconds", "sha256"}. Raises TypeError for what JSON cannot hold.
    """
    if isinstance(value, Sound):
        return {"seconds": value.seconds, "rate": value.rate, "sha256": describe(value.samples)["sha256"]}
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _describe_field(each.name, getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _describe_field(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, os.PathLike):
        return _describe_file(Path(value))
    if isinstance(value, Image.Image):
        return {"size": list(value.size), "sha256": hashlib.sha256(value.convert("RGB").tobytes()).hexdigest()}
    if isinstance(value, torch.Tensor):
        data = value.detach().float().cpu().contiguous().numpy().tobytes()
        return {"shape": list(value.shape), "sha256": hashlib.sha256(data).hexdigest()}
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value).removeprefix("torch.")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a recipe cannot hold {type(value).__name__}: {value!r}")


def _describe_field(name: str, value: Any) -> Any:
    is_file = isinstance(value, str) and name.split("_")[-1] in _MEDIA_FIELDS
    return _describe_file(Path(value)) if is_file else describe(value)


def _describe_file(path: Path) -> dict[str, str | None]:
    """A file that cannot be read any more has no hash: a recipe is made when the work is done, which must not be lost for it."""
    try:
        digest = folder_sha256(path) if path.is_dir() else sha256_of(path)
    except OSError:
        digest = None
    return {"path": str(path.absolute()), "sha256": digest}


def folder_sha256(path: Path) -> str:
    """Of the names and contents of the inputs of an animation, `src_*`; what else lies there does not enter the result."""
    parts = [f"{file.name} {sha256_of(file)}" for file in sorted(path.glob("src_*")) if file.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
