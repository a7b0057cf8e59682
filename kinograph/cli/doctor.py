"""`kinograph doctor`: what this machine can run, what is missing, and the command that mends it.

Each check stands alone: one that fails is reported as a finding, so that a broken installation still gets its report.
"""
from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kinograph import __version__
from kinograph.cli.arguments import OUTPUT, Flag, Parser
from kinograph.cli.sizes import GIB, memory_needed
from kinograph.config import MODELS, ModelSpec

OK, MISSING, NOTE = "ok", "missing", "note"
MARKS = {OK: "  ok     ", MISSING: "  MISSING", NOTE: "  note   "}
LOW_DISK = 2 * GIB
ENCODERS = {"libx264": ".mp4", "libvpx-vp9": ".webm", "gif": ".gif"}
FLAGS = (Flag(name="json", group=OUTPUT, read=None, help="the findings as JSON, one a line"),)


@dataclass(frozen=True)
class Finding:
    """One line of the report. `status`: "ok", "missing" (something will not work), "note" (optional, or good to know)."""

    section: str
    status: str
    text: str


def run(argv: Sequence[str]) -> int:
    parser = Parser("doctor", example="kinograph doctor", description="Says what this machine can run and what is missing.")
    parser.add_flags(FLAGS)
    as_json = "json" in parser.read(argv)
    section = ""
    for finding in examine():
        if as_json:
            print(json.dumps(asdict(finding), ensure_ascii=False))
            continue
        if finding.section != section:
            section = finding.section
            print(section)
        print(f"{MARKS[finding.status]}  {finding.text}")
    return 0


def examine() -> Iterator[Finding]:
    """Every finding, in the order of the report."""
    for section, check in CHECKS.items():
        try:
            for status, text in check():
                yield Finding(section, status, text)
        except Exception as error:  # the report must survive whatever is broken
            yield Finding(section, MISSING, f"this check failed: {type(error).__name__}: {error}")


Lines = Iterable[tuple[str, str]]


def check_software() -> Lines:
    yield OK, f"kinograph {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    import torch

    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU only"
    yield OK, f"torch {torch.__version__} ({built_for})"


def check_devices() -> Lines:
    import torch

    from kinograph.runtime.device import free_bytes

    free = free_bytes(torch.device("cpu"))
    yield OK, f"cpu: {os.cpu_count()} cores" + (f", {free / GIB:.0f} GiB of memory free" if free else "")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            yield OK, f"cuda:{index}: {gpu.name}, {gpu.total_memory / GIB:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
    elif torch.backends.mps.is_available():
        yield OK, "mps: Apple GPU"
    elif torch.version.cuda or torch.version.hip:
        yield NOTE, "no GPU is visible: the driver is absent, too old for this torch, or hidden by CUDA_VISIBLE_DEVICES"
    else:
        yield NOTE, "no GPU: this torch is built for the CPU only (https://pytorch.org/get-started/locally has the others)"


def check_disk() -> Lines:
    for place, folder in {"working folder": Path.cwd(), "home folder": Path.home()}.items():
        free = shutil.disk_usage(folder).free
        yield OK if free > LOW_DISK else NOTE, f"{place} {folder}: {free / GIB:.0f} GiB free"


def check_video() -> Lines:
    import av
    from av.codec import Codec

    yield OK, f"PyAV {av.__version__}"
    for encoder, suffix in ENCODERS.items():
        try:
            Codec(encoder, "w")
            yield OK, f"{encoder} (writes {suffix})"
        except Exception:  # PyAV's error types differ between its versions
            yield MISSING, f"{encoder}: {suffix} files cannot be written; install PyAV from PyPI: pip install --force-reinstall av"


def check_attention() -> Lines:
    import torch

    from kinograph.ops.attention import IMPLEMENTATIONS

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for name, implementation in IMPLEMENTATIONS.items():
        reason = implementation.why_not(device, dtype, MODELS["t2v-A14B"].dit.head_dim)
        yield (OK, name) if reason is None else (NOTE, f"{name} cannot run here: {reason}")


def check_extras() -> Lines:
    wanted: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("kinograph") or []:
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
        package = re.match(r"[A-Za-z0-9._-]+", requirement)
        if extra and package:
            wanted.setdefault(extra[1], []).append(package[0])
    for name, packages in wanted.items():
        absent = [each for each in packages if not installed(each)]
        if absent:
            yield NOTE, f"{name}: without {', '.join(absent)}; to have it: pip install 'kinograph[{name}]'"
        else:
            yield OK, f"{name}: {', '.join(packages)}"


def check_models() -> Lines:
    from kinograph.checkpoints.download import find_cached
    from kinograph.checkpoints.layout import bundled_folder

    device, memory, bytes_per_weight = memory_of_default()
    for spec in MODELS.values():
        if not spec.available:
            yield NOTE, f"{spec.name}: not built yet"
            continue
        status, text = fit(spec, device, memory, bytes_per_weight)
        if spec.bundled:
            try:
                text += f"; weights in {bundled_folder(spec)}"
            except Exception as error:
                status, text = MISSING, f"{text}; {error}"
        else:
            cached = find_cached(spec)
            text += f"; weights in {cached}" if cached else f"; weights: kinograph download {spec.name}"
        yield status, text


CHECKS: dict[str, Callable[[], Lines]] = {
    "software": check_software,
    "devices": check_devices,
    "disk": check_disk,
    "video": check_video,
    "attention": check_attention,
    "extras": check_extras,
    "models (memory is an estimate)": check_models,
}


def fit(spec: ModelSpec, device: str, memory: int | None, bytes_per_weight: int) -> tuple[str, str]:
    """(status, sentence): whether the largest default video of `spec` fits in `memory` bytes of `device`."""
    swapped = memory_needed(spec, bytes_per_weight=bytes_per_weight, keep_all=False)
    if memory is None:
        return NOTE, f"{spec.name}: needs about {swapped / GIB:.0f} GiB; the memory of {device} is not known"
    have = f"{memory / GIB:.0f} GiB of {device}"
    if memory_needed(spec, bytes_per_weight=bytes_per_weight, keep_all=True) <= memory:
        return OK, f"{spec.name}: fits the {have}"
    if swapped <= memory:
        return OK, f"{spec.name}: fits the {have}, each model released after its stage (about {swapped / GIB:.0f} GiB)"
    return NOTE, f"{spec.name}: needs about {swapped / GIB:.0f} GiB and there are {have}"


def memory_of_default() -> tuple[str, int | None, int]:
    """(device, bytes or None where unknown, bytes of a weight there) of the device that `--device auto` takes."""
    import torch

    from kinograph.runtime.device import free_bytes, resolve_device

    device = resolve_device("auto")
    size = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else free_bytes(device)
    return str(device), size, 4 if device.type == "cpu" else 2


def installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
