"""One module per task: a request in, a plan and the conditioning of each clip out.

Every module has
    plan(request, spec) -> Plan                                         every refusal, before any weight is loaded
    prepare(components, request, plan) -> Any                           once a run: files read, what serves all clips encoded
    condition(components, plan, text, prepared, clip, carry) -> ClipInputs
What `prepare` returns is the task's own; if it has an attribute `sound` (`media.audio.Sound` or None), the file gets it.
"""
from __future__ import annotations

from types import ModuleType

from kinograph.requests import Animate, ImageToVideo, SpeechToVideo, TextImageToVideo, TextToVideo, VideoRequest
from kinograph.tasks import animate, i2v, s2v, t2v, ti2v

REQUESTS: dict[str, type[VideoRequest]] = {
    "t2v": TextToVideo,
    "i2v": ImageToVideo,
    "ti2v": TextImageToVideo,
    "s2v": SpeechToVideo,
    "animate": Animate,
}
TASKS: dict[type[VideoRequest], ModuleType] = {
    TextToVideo: t2v,
    ImageToVideo: i2v,
    TextImageToVideo: ti2v,
    SpeechToVideo: s2v,
    Animate: animate,
}
