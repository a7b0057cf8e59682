"""Pictures and pose videos brought to the frame of a speech video: resized with antialiasing, then cropped at the centre.

The published rule makes the picture's short side as long as the frame's, which need not fill the frame: what is left is black
around a picture and mid-grey around a pose. Here they are scaled to cover, unless the published result is asked for. Where
the published rule fills the frame, the two are the same.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image

from kinograph.media.images import cover, image_to_tensor


def fit_picture(image: Image.Image, width: int, height: int, *, fill: bool = True) -> torch.Tensor:
    """float32 [3, H, W] in [-1, 1]: an RGB picture, resized in 8 bits. Not `fill`: as published, black where it does not reach."""
    resized, (left, top) = _placement(*image.size, width=width, height=height, fill=fill)
    picture = image.convert("RGB").resize(resized, Image.Resampling.BILINEAR)
    return image_to_tensor(picture.crop((left, top, left + width, top + height)))  # outside of the picture, `crop` gives black


def fit_frames(frames: torch.Tensor, width: int, height: int, *, fill: bool = True) -> torch.Tensor:
    """float32 [3, T, H, W] in [-1, 1] for uint8 `frames` [T, h, w, 3]. Not `fill`: as published, grey (0) where they do not reach."""
    resized, (left, top) = _placement(frames.shape[2], frames.shape[1], width=width, height=height, fill=fill)
    video = frames.permute(0, 3, 1, 2).float().div(127.5).sub(1)
    video = F.interpolate(video, size=(resized[1], resized[0]), mode="bilinear", align_corners=False, antialias=True)
    right, bottom = resized[0] - width - left, resized[1] - height - top
    return F.pad(video, (-left, -right, -top, -bottom)).transpose(0, 1)


def _placement(image_width: int, image_height: int, *, width: int, height: int, fill: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """The ((width, height) to resize to, (left, top) of the frame in that; negative where the frame is larger)."""
    short, side = min(image_width, image_height), min(width, height)
    resized = (int(side * image_width / short), int(side * image_height / short))
    if fill and (resized[0] < width or resized[1] < height):
        return cover(image_width, image_height, width=width, height=height)
    return resized, (_centred(resized[0], width), _centred(resized[1], height))


def _centred(size: int, frame: int) -> int:
    """Where a frame begins on a side: published as half of the excess, rounded half to even, or of the lack, rounded down."""
    return round((size - frame) / 2) if size >= frame else -((frame - size) // 2)
