"""Pictures fitted into a frame of another shape: scaled until they touch two sides, centred, black bars beside."""
from __future__ import annotations

import torch
import torch.nn.functional as F


def fit_size(width: int, height: int, *, into: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a picture scaled to fit `into` (width, height); fractions are cut off, as in the published code."""
    frame_width, frame_height = into
    if height / width > frame_height / frame_width:
        return max(1, int(frame_height / height * width)), frame_height
    return frame_width, max(1, int(frame_width / width * height))


def letterbox(pictures: torch.Tensor, width: int, height: int, *, average: bool = False) -> torch.Tensor:
    """uint8 [..., height, width, 3] for uint8 pictures [..., H, W, 3].

    `average` shrinks by averaging the covered pixels; otherwise, and for enlarging, interpolation is linear.
    """
    inner_width, inner_height = fit_size(pictures.shape[-2], pictures.shape[-3], into=(width, height))
    if (inner_height, inner_width) != tuple(pictures.shape[-3:-1]):
        shrinks = inner_height <= pictures.shape[-3] and inner_width <= pictures.shape[-2]
        resize = resize_average if average and shrinks else resize_linear
        pictures = resize(pictures, inner_width, inner_height).round_().clamp_(0, 255).to(torch.uint8)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return F.pad(pictures, (0, 0, left, width - inner_width - left, top, height - inner_height - top))


def resize_linear(pictures: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """float32 [..., height, width, C] for pictures [..., H, W, C] of any dtype: linear, half-pixel centres, no antialiasing."""
    rows = pictures.reshape(-1, *pictures.shape[-3:]).permute(0, 3, 1, 2).float()
    resized = F.interpolate(rows, size=(height, width), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(*pictures.shape[:-3], height, width, pictures.shape[-1])


def resize_average(pictures: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """float32 [..., height, width, C]: each result pixel is the mean of the area it covers, fractions of pixels included."""
    rows, columns = coverage(pictures.shape[-3], height), coverage(pictures.shape[-2], width)
    return torch.einsum("hH,...HWc,wW->...hwc", rows, pictures.float(), columns)


def coverage(size: int, resized: int) -> torch.Tensor:
    """[resized, size]: how much of each pixel lies in each of `resized` equal parts of a line of `size`; rows sum to 1."""
    edges = torch.arange(resized + 1, dtype=torch.float64) * size / resized
    pixels = torch.arange(size, dtype=torch.float64)
    shared = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (shared.clamp(min=0) * resized / size).float()
