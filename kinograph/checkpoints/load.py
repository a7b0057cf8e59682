"""Files to module: built without memory, filled tensor by tensor, strict.

    memory map -> device (in the file's dtype) -> steps (8-bit storage, other formats) -> dtype of the model

The host never holds a second copy. On the CPU, weights that are stored in the dtype wanted stay backed by the file:
loading is then instant, and the operating system may drop the pages at will.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn

from kinograph.checkpoints.files import read_tensors
from kinograph.checkpoints.layout import compare
from kinograph.checkpoints.storage import Pair, Step, unpack
from kinograph.errors import CheckpointError

COPY_THREADS = 4  # a page fault blocks only its own thread, so files are read while other tensors are copied
COPIES_AHEAD = 8  # bound on tensors that wait on the device in the dtype of the file


@torch.inference_mode(False)  # weights made in inference mode could not be used outside of it later
def load_model(
    factory: Callable[[], nn.Module],
    files: Iterable[str | Path],
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    keep_fp32: Callable[[str], bool] = lambda name: False,
    steps: Sequence[Step] = (unpack,),
) -> nn.Module:
    """The model of `factory` with the weights in `files`, on `device`, in evaluation mode, without gradients.

    Floating-point tensors become `dtype` (None: they stay as stored), and float32 where `keep_fp32(name)` says so.
    Raises CheckpointError unless names and shapes are exactly those of the model.
    """
    paths = [Path(path) for path in files]
    with torch.device("meta"):
        model = factory()
    expected = model.state_dict()
    stream = _to_device(_unique(paths), torch.device(device))
    for step in steps:
        stream = step(stream)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in stream:
        # A name or shape that does not belong is kept as found, for the message; it is not worth converting.
        wanted = torch.float32 if keep_fp32(name) else dtype
        tensors[name] = tensor.to(wanted) if wanted and tensor.is_floating_point() and name in expected else tensor
    if difference := compare(expected, tensors):
        raise CheckpointError(f"{_place(paths)} does not fit the {type(model).__name__}: {difference}; use the files of this very model")
    model.load_state_dict(tensors, strict=True, assign=True)
    _assert_materialised(model)
    return model.eval().requires_grad_(False)


def _unique(paths: Sequence[Path]) -> Iterator[Pair]:
    seen: dict[str, Path] = {}
    for path in paths:
        for name, tensor in read_tensors(path):
            if name in seen:
                raise CheckpointError(f"{name} is in both {seen[name]} and {path}; keep one set of weight files in the folder")
            seen[name] = path
            yield name, tensor


def _to_device(stream: Iterable[Pair], device: torch.device) -> Iterator[Pair]:
    """The same pairs in the same order, on `device`; a few copies run ahead of the consumer."""
    if device.type == "cpu":
        yield from stream
        return
    with ThreadPoolExecutor(COPY_THREADS) as pool:
        ahead: deque[tuple[str, Future[torch.Tensor]]] = deque()
        for name, tensor in stream:
            ahead.append((name, pool.submit(tensor.to, device)))
            if len(ahead) > COPIES_AHEAD:
                yield _finished(ahead)
        while ahead:
            yield _finished(ahead)


def _finished(ahead: deque[tuple[str, Future[torch.Tensor]]]) -> Pair:
    name, copy = ahead.popleft()
    return name, copy.result()


def _assert_materialised(model: nn.Module) -> None:
    """Buffers outside the state dict get no weights: a module must compute such values in `forward`, not keep them."""
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, f"{type(model).__name__} still has tensors without memory after loading: {', '.join(left[:3])}"


def _place(paths: Sequence[Path]) -> Path:
    return paths[0] if len(paths) == 1 else paths[0].parent
