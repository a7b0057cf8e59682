"""What is wanted: one frozen dataclass per task. The command line and the server derive their options from these.

`None` means the model's own default (`ModelSpec`). Nothing is checked against a model here: `tasks/*.plan` does that,
before any weight is loaded.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """What every task takes."""

    prompt: str
    negative_prompt: str | None = None  # None: the model's default; "": truly empty
    width: int | None = None  # pixels
    height: int | None = None
    num_frames: int | None = None  # 4n + 1
    num_steps: int | None = None
    shift: float | None = None
    guidance_scale: float | Mapping[str, float] | None = None  # one for all experts, or {"high_noise": 4.0, "low_noise": 3.0}
    solver: str | None = None  # "unipc", "dpm++", "euler"
    preset: str | None = None  # a few-step recipe of `sampling.presets`: fills what else is None, before the model's defaults
    seed: int = -1  # negative: drawn, and recorded in the result
    fps: float | None = None  # of the written file
    noise_device: str = "cpu"  # "cpu": the same noise everywhere; "cuda": as the published code draws it


@dataclass(frozen=True, kw_only=True)
class TextToVideo(VideoRequest):
    """A video from a prompt."""


@dataclass(frozen=True, kw_only=True)
class ImageToVideo(VideoRequest):
    """A video that starts with a picture; `width` * `height` gives the area, the picture the aspect."""

    image: Any = None  # path, PIL image, or float tensor [3, H, W] in [-1, 1]
    last_image: Any = None  # the picture the video ends with
    num_clips: int = 1  # more than one: each later clip continues from the last frame of the one before


@dataclass(frozen=True, kw_only=True)
class TextImageToVideo(VideoRequest):
    """A video from a prompt and, if given, its first picture."""

    image: Any = None
    num_clips: int = 1
