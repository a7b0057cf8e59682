"""Kinograph runs the Wan2.2 family of video models.

    import kinograph

    components = kinograph.load("ti2v-nano")
    video = kinograph.generate(components, kinograph.TextImageToVideo(prompt="a red ball rolls to the right"))

The public names are the keys of `_HOMES`; each is imported from its home when it is first asked for, so that
`import kinograph` alone stays free of torch.
"""
from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Animate": "kinograph.requests",
    "Cancelled": "kinograph.errors",
    "CheckpointError": "kinograph.errors",
    "ImageToVideo": "kinograph.requests",
    "KinographError": "kinograph.errors",
    "MODELS": "kinograph.config",
    "MediaError": "kinograph.errors",
    "MissingExtraError": "kinograph.errors",
    "ModelSpec": "kinograph.config",
    "RequestError": "kinograph.errors",
    "RuntimeOptions": "kinograph.config",
    "RuntimeSetupError": "kinograph.errors",
    "Sound": "kinograph.media",
    "SpeechToVideo": "kinograph.requests",
    "TextImageToVideo": "kinograph.requests",
    "TextToVideo": "kinograph.requests",
    "Video": "kinograph.pipeline",
    "generate": "kinograph.pipeline",
    "load": "kinograph.pipeline",
    "plan": "kinograph.pipeline",
    "read_recipe": "kinograph.recipe",
    "read_sound": "kinograph.media",
    "to_uint8": "kinograph.media",
    "write_video": "kinograph.media",
}

__all__ = sorted(["__version__", *_HOMES])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kinograph' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
