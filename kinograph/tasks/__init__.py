"""One module per task: a request in, a plan and the conditioning of each clip out.

Every module has `plan(request, spec)`, `start(request, plan, previous)` and `condition(components, plan, text, start)`.
"""
from __future__ import annotations

from types import ModuleType

from kinograph.requests import ImageToVideo, TextImageToVideo, TextToVideo, VideoRequest
from kinograph.tasks import i2v, t2v, ti2v

REQUESTS: dict[str, type[VideoRequest]] = {"t2v": TextToVideo, "i2v": ImageToVideo, "ti2v": TextImageToVideo}
TASKS: dict[type[VideoRequest], ModuleType] = {TextToVideo: t2v, ImageToVideo: i2v, TextImageToVideo: ti2v}
