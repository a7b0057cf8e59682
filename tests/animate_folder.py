"""Folders of material for the animation model, drawn for tests."""
from __future__ import annotations

import json
from pathlib import Path

import av
import torch
from PIL import Image
from torch import Tensor

from kinograph.media import write_video


def write_lossless(path: Path, frames: Tensor, fps: int) -> None:
    """uint8 [T, H, W, 3] as a Matroska file that gives the very same pixels back."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for pixels in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def write(path: Path, frames: Tensor, fps: int) -> None:
    if path.suffix == ".mkv":
        write_lossless(path, frames, fps)
    else:
        write_video(path, frames, fps)


def drawn(seed: int, frames: int, height: int, width: int) -> Tensor:
    """uint8 [frames, height, width, 3]: smooth colours that move."""
    coarse = torch.rand(1, 3, frames + 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    video = torch.nn.functional.interpolate(coarse, size=(frames, height, width), mode="trilinear")
    return (video[0] * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def box(frames: int, height: int, width: int) -> Tensor:
    """uint8 [frames, height, width, 3]: white on a person in the middle, else black."""
    mask = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    mask[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 255
    return mask


def write_material(
    folder: Path,
    *,
    frames: int = 13,
    size: tuple[int, int] = (64, 48),  # width, height
    face_size: int = 16,
    replace: bool = False,
    fps: int = 25,
    suffix: str = ".mp4",
    record: dict | None = None,
) -> Path:
    """A complete folder; `record` is what material.json has, None for no such file."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    write(folder / f"src_pose{suffix}", drawn(1, frames, height, width), fps)
    write(folder / f"src_face{suffix}", drawn(2, frames, face_size, face_size), fps)
    if replace:
        write(folder / f"src_bg{suffix}", drawn(3, frames, height, width), fps)
        write(folder / f"src_mask{suffix}", box(frames, height, width), fps)
    Image.fromarray(drawn(4, 1, 40, 30)[0].numpy()).save(folder / "src_ref.png")
    if record is not None:
        (folder / "material.json").write_text(json.dumps(record))
    return folder
