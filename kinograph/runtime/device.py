"""What the machine has: devices, number formats, memory. The only file that asks a backend about itself."""
from __future__ import annotations

import os
import sys

import torch

from kinograph.errors import RuntimeSetupError

if sys.platform != "win32":
    import resource

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device that `name` means here: "auto" is a CUDA GPU if there is one, then an Apple GPU, then the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RuntimeSetupError(f"device {name!r} is not known; use auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda":
        return _resolve_cuda(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RuntimeSetupError("device 'mps' is not available to this PyTorch on this machine; use device auto or cpu")
    if device.type not in ("cpu", "mps"):
        raise RuntimeSetupError(f"device {name!r} is not supported; use auto, cpu, cuda, cuda:1 or mps")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that `name` means on `device`: "auto" is bfloat16 on a GPU, float32 on a CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise RuntimeSetupError(f"dtype {name!r} is not known; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def device_name(device: torch.device) -> str:
    """The name of the hardware, for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def free_bytes(device: torch.device) -> int | None:
    """Memory that could be allocated now, counting what PyTorch holds but does not use; None where it cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return _available_host_bytes()


def synchronize(device: torch.device) -> None:
    """Waits until `device` has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def return_memory(device: torch.device) -> None:
    """Gives memory that PyTorch holds but does not use back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def take_peak_bytes(device: torch.device) -> int:
    """Largest memory allocated on `device` since the last call, which it starts anew; 0 on a CPU."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return torch.mps.current_allocated_memory() if device.type == "mps" else 0  # Apple's backend keeps no peak


def host_peak_bytes() -> int:
    """Largest resident size of this process so far; 0 on Windows. Weight files mapped into memory count while their pages are in use."""
    if sys.platform == "win32":
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _resolve_cuda(device: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        raise RuntimeSetupError(f"device {str(device)!r} is not available: this PyTorch finds no CUDA GPU; use device auto or cpu")
    index = torch.cuda.current_device() if device.index is None else device.index
    count = torch.cuda.device_count()
    if index >= count:
        raise RuntimeSetupError(f"device 'cuda:{index}' does not exist: this machine has {count}; use cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def _available_host_bytes() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
