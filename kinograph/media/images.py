"""Pictures: read any into 8-bit RGB as it is meant to look, and the resize rules of the two image tasks."""
from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps

from kinograph.errors import MediaError
from kinograph.media.files import read_error

MAX_PIXELS = 150_000_000  # 450 MB as RGB; Pillow itself refuses from 179 million
ImageSource = str | os.PathLike[str] | Image.Image | torch.Tensor


# ----------------------------------------------------------------------------------------------------------- reading


def read_image(source: ImageSource) -> Image.Image:
    """The picture as RGB, upright, opaque: a path, a PIL image, or a float tensor [3, H, W] in [-1, 1].

    EXIF orientation is applied, transparency is laid over white, colour profiles (Display P3 phones, CMYK print) are
    converted to sRGB, 16-bit greys are scaled to 8 bits, and of an animation the first frame is taken. The published code
    does none of this; an upright opaque sRGB picture comes out the same. A tensor is rounded to 8 bits.
    Raises MediaError for what cannot be read, and, before decoding, for more than 150 megapixels.
    """
    if isinstance(source, torch.Tensor):
        return _from_tensor(source)
    if isinstance(source, Image.Image):
        return _decode(source, name="the given picture")
    path = Path(source)
    try:
        with _open(path) as image:
            return _decode(image, name=str(path))
    except MediaError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged files
        raise read_error(path, error, kind="picture") from error


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is between its warning and its error
        try:
            return Image.open(path)
        except Image.DecompressionBombError as error:
            raise MediaError(f"{path} is too large to read safely ({error}); scale it down first") from error


def _decode(image: Image.Image, *, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise MediaError(
            f"{name} is {width} x {height} pixels, {width * height / 1e6:.0f} megapixels; "
            f"scale it down to at most {MAX_PIXELS // 10**6} megapixels"
        )
    if width * height == 0:
        raise MediaError(f"{name} has no pixels: it is {width} x {height}")
    image.load()
    profile = image.info.get("icc_profile")
    upright = ImageOps.exif_transpose(image)
    return _to_srgb(_flatten(_to_eight_bits(upright, name=name)), profile)


def _to_eight_bits(image: Image.Image, *, name: str) -> Image.Image:
    """Greys of more than 8 bits scaled to 8; Pillow's own conversion clips them to white."""
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        low, high, peak = 0.0, 1.0, 1.0
    elif image.mode.startswith("I"):  # "I;16", "I;16B", and "I", in which older Pillows open 16-bit PNGs
        values = np.asarray(image, dtype=np.float32)
        low, high, peak = 0, 65535, 65535
    else:
        return image
    if not (values.min() >= low and values.max() <= high):
        raise MediaError(
            f"{name} has grey values from {values.min():g} to {values.max():g}, outside {low:g} to {high:g}; save it with 8 or 16 bits"
        )
    return Image.fromarray(np.rint(values * (255 / peak)).astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    """RGB or CMYK without transparency: over white, because the colours under transparent pixels are arbitrary."""
    transparent = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    if transparent:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    return image if image.mode in ("RGB", "CMYK") else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(source).lower():
                converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                return converted or image.convert("RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one for another mode (a grey one after flattening): viewers ignore it too
    return image.convert("RGB")


# ------------------------------------------------------------------------------------------------ tensors and resizing


def image_to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB picture -> float32 [3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).to(torch.float32).div(255).sub(0.5).div(0.5).contiguous()


def cover(image_width: int, image_height: int, *, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The ((width, height) to resize to, (left, top) to crop from) with which a picture just covers width x height."""
    scale = max(width / image_width, height / image_height)
    resized = (round(image_width * scale), round(image_height * scale))
    return resized, ((resized[0] - width) // 2, (resized[1] - height) // 2)


def resize_lanczos_crop(image: Image.Image, width: int, height: int) -> torch.Tensor:
    """The picture of the text-image-to-video task: Lanczos resize to cover, centre crop -> float32 [3, H, W] in [-1, 1]."""
    resized, (left, top) = cover(*image.size, width=width, height=height)
    covering = image.convert("RGB").resize(resized, Image.Resampling.LANCZOS)
    return image_to_tensor(covering.crop((left, top, left + width, top + height)))


def resize_bicubic(image: Image.Image, width: int, height: int) -> torch.Tensor:
    """The picture of the image-to-video task: bicubic without antialiasing or crop -> float32 [3, H, W], about [-1, 1].

    As published, the cubic (a = -0.75, half-pixel centres) may overshoot [-1, 1] a little and is not clamped.
    """
    pixels = image_to_tensor(image)[None]
    return F.interpolate(pixels, size=(height, width), mode="bicubic", align_corners=False, antialias=False)[0]


def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """Float video [3, T, H, W] in [-1, 1] (clamped) -> uint8 [T, H, W, 3], on the same device.

    Rounds to the nearest of the 256 levels, where the published code truncates: that darkens every pixel by half a level
    on average. Works frame by frame, so a long video needs no second float copy.
    Raises MediaError if a value is not a number: it would be written as an arbitrary colour.
    """
    if video.dim() != 4 or video.shape[0] != 3:
        raise ValueError(f"to_uint8 takes a video [3, T, H, W]; got shape {tuple(video.shape)}")
    _, num_frames, height, width = video.shape
    frames = torch.empty((num_frames, height, width, 3), dtype=torch.uint8, device=video.device)
    for index in range(num_frames):
        levels = video[:, index].float().add(1).mul(127.5)
        if levels.isnan().any():
            raise MediaError(f"frame {index + 1} of the video holds values that are not numbers; run with dtype float32 or bfloat16")
        frames[index] = levels.round().clamp(0, 255).permute(1, 2, 0)
    return frames


def _from_tensor(pixels: torch.Tensor) -> Image.Image:
    if pixels.dim() != 3 or pixels.shape[0] != 3 or not pixels.is_floating_point():
        raise MediaError(f"a picture given as a tensor must be float [3, H, W] in [-1, 1]; got {pixels.dtype} {list(pixels.shape)}")
    return Image.fromarray(to_uint8(pixels.detach()[:, None])[0].cpu().numpy())
