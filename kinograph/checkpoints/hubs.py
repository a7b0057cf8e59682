"""What the two hubs hold: the files of a repository at one revision, with sizes, hashes and addresses.

    hf           through huggingface_hub; HF_ENDPOINT (mirrors), HF_TOKEN and HF_HUB_OFFLINE are honoured
    modelscope   its HTTP interface; MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN are honoured

The environment is read at each call.
"""
from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlencode

from kinograph import __version__
from kinograph.checkpoints.fetch import RemoteFile
from kinograph.errors import CheckpointError, MissingExtraError, RequestError

MODELSCOPE = "https://modelscope.cn"
TIMEOUT = 30.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of `repo` at `revision`, which is a commit where the hub tells one."""

    source: str
    repo: str
    revision: str
    asked: str  # the revision by the name it was asked for
    files: tuple[RemoteFile, ...]


def hugging_face(repo: str, revision: str | None) -> Listing:
    """The listing of a model on Hugging Face, or on the mirror that HF_ENDPOINT names."""
    if hub_is_offline():
        raise RequestError(f"HF_HUB_OFFLINE is set, so nothing can be downloaded; unset it, or bring the files of {repo} here yourself")
    hub = import_hub()
    endpoint = os.environ.get("HF_ENDPOINT") or None
    asked = revision or "main"
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(repo, revision=asked, files_metadata=True)
    except hub.errors.RevisionNotFoundError as error:
        raise RequestError(f"{repo} has no revision {asked!r}; leave --revision out for the newest") from error
    except hub.errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{repo} is not on the hub, or not for this account; check HF_TOKEN and HF_ENDPOINT") from error
    except Exception as error:  # the errors of its transport differ between versions of huggingface_hub
        raise _unreachable(endpoint or "https://huggingface.co", error, other="modelscope") from error
    headers = {name: value for name, value in hub.utils.build_hf_headers().items() if name.lower() == "authorization"}

    def remote(entry: Any) -> RemoteFile:
        lfs = entry.lfs
        return RemoteFile(
            path=_safe(entry.rfilename),
            url=hub.hf_hub_url(repo, entry.rfilename, revision=info.sha, endpoint=endpoint),
            size=_known_size(entry.rfilename, entry.size),
            sha256=lfs.sha256 if lfs else None,
            git_sha1=None if lfs else entry.blob_id,
            headers=headers,
        )

    return Listing(source="hf", repo=repo, revision=info.sha, asked=asked, files=tuple(map(remote, info.siblings or ())))


def modelscope(repo: str, revision: str | None) -> Listing:
    """The listing of a model on ModelScope."""
    endpoint = (os.environ.get("MODELSCOPE_ENDPOINT") or MODELSCOPE).rstrip("/")
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    asked = revision or "master"
    base = f"{endpoint}/api/v1/models/{repo}/repo"
    entries = _modelscope_entries(f"{base}/files?{urlencode({'Revision': asked, 'Recursive': 'True'})}", headers, repo, asked)

    def remote(entry: Mapping[str, Any]) -> RemoteFile:
        return RemoteFile(
            path=_safe(entry["Path"]),
            url=f"{base}?{urlencode({'Revision': asked, 'FilePath': entry['Path']})}",
            size=_known_size(entry["Path"], entry.get("Size")),
            sha256=entry.get("Sha256") or None,
            headers=headers,
        )

    files = tuple(remote(entry) for entry in entries if entry.get("Type") != "tree")
    return Listing(source="modelscope", repo=repo, revision=asked, asked=asked, files=files)


HUBS: dict[str, Callable[[str, str | None], Listing]] = {"hf": hugging_face, "modelscope": modelscope}


def import_hub() -> Any:
    """The package huggingface_hub; MissingExtraError where it is not installed."""
    try:
        import_module("huggingface_hub.errors")
        import_module("huggingface_hub.utils")
        return import_module("huggingface_hub")
    except ImportError as error:
        raise MissingExtraError("the download from Hugging Face", "huggingface_hub", "hub") from error


def hub_is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in ("1", "ON", "YES", "TRUE")


def hub_cache() -> Path:
    """The folder of the Hugging Face cache, by the rules of huggingface_hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HOME") or default).expanduser() / "hub"


def modelscope_folder(repo: str) -> Path:
    """Where a model of ModelScope is kept when no folder is named."""
    return Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope/hub").expanduser() / "models" / repo


def _modelscope_entries(url: str, headers: Mapping[str, str], repo: str, asked: str) -> list[Mapping[str, Any]]:
    request = urllib.request.Request(url, headers={"User-Agent": f"kinograph/{__version__}"})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return list(json.load(response)["Data"]["Files"])
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            raise CheckpointError(
                f"ModelScope has no {repo} at revision {asked!r}, or not for this account; check --revision and MODELSCOPE_API_TOKEN"
            ) from error
        raise _unreachable(url, error, other="hf") from error
    except OSError as error:
        raise _unreachable(url, error, other="hf") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the answer of {url} is not a list of files; check MODELSCOPE_ENDPOINT, or use --source hf") from error


def _unreachable(address: str, error: Exception, *, other: str) -> CheckpointError:
    reason = " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__
    return CheckpointError(f"{address} cannot be reached ({reason[:200]}); check the network and its proxy, or use --source {other}")


def _safe(path: str) -> str:
    """`path`, which must stay inside the folder it is put in."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or ":" in path:
        raise CheckpointError(f"the hub lists a file {path!r} outside its repository; do not use this hub")
    return path


def _known_size(path: str, size: Any) -> int:
    if not isinstance(size, int) or size < 0:
        raise CheckpointError(f"the hub does not tell the size of {path}, so it could not be checked; use another hub or mirror")
    return size
