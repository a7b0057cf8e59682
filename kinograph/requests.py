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
    smooth_joins: bool = True  # later clips begin in the colours that the clip before ended in


@dataclass(frozen=True, kw_only=True)
class TextImageToVideo(VideoRequest):
    """A video from a prompt and, if given, its first picture."""

    image: Any = None
    num_clips: int = 1
    smooth_joins: bool = True  # later clips begin in the colours that the clip before ended in


@dataclass(frozen=True, kw_only=True)
class SpeechToVideo(VideoRequest):
    """The person of a picture speaks or sings a sound; `width` * `height` gives the area, the picture the aspect.

    The video is as long as the sound. `num_frames` is of one clip, 4n.
    """

    prompt: str = ""
    image: Any = None  # path, PIL image, or float tensor [3, H, W] in [-1, 1]
    audio: Any = None  # path of a sound, or of a video with one; or a `media.Sound`
    pose_video: Any = None  # path of a video of drawn skeletons to follow
    num_clips: int | None = None  # at most so many; None: as many as the sound needs
    start_from_reference: bool = False  # the video begins with the picture itself
    anchor: float = 0.0  # how far later clips are pulled towards the colours of the first: 0 (not at all, as published) to 1
    smooth_joins: bool = True  # later clips begin in the colours that the clip before ended in; False: as published
    carry: str = "pixels"  # what a clip goes on from: the newest "pixels", encoded anew as published, or the "latents" as they are
    sound_offset: float = 0.0  # seconds by which the sound in the file comes later than the model heard it; negative: earlier
    tts_text: str | None = None  # what to say, instead of `audio`
    enable_tts: bool = False  # the published switch; `tts_text` alone asks for as much
    tts_prompt_audio: Any = None  # path of a sample of the voice to speak with; None: the small built-in voice
    tts_prompt_text: str | None = None  # what is said in the sample


@dataclass(frozen=True, kw_only=True)
class Animate(VideoRequest):
    """A character from a picture that moves as a person in a video, or takes that person's place.

    `material` has what was made of picture and video beforehand; size, length, rate and sound are the material's.
    """

    prompt: str = ""  # empty: the model's own
    material: Any = None  # path of a folder: `kinograph preprocess` makes it
    mode: str = "animate"  # "animate": all is generated; "replace": in the scene of the video
    anchor: float = 0.0  # how far later clips are pulled towards the colours of the first: 0 (not at all, as published) to 1
    smooth_joins: bool = True  # later clips begin in the colours that the clip before ended in; False: as published
    overlap: int = 1  # frames of each clip, 1 or 5, that the next one goes on from
