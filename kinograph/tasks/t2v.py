"""Text to video: the prompt is the whole condition."""
from __future__ import annotations

from kinograph.config import ModelSpec
from kinograph.models.dit import Inputs
from kinograph.requests import TextToVideo
from kinograph.runtime.placement import Components
from kinograph.sampling.denoise import Conditioning
from kinograph.tasks.inputs import ClipStart, TextEmbeddings
from kinograph.tasks.plan import Plan, exact_size, make_plan, require_prompt


def plan(request: TextToVideo, spec: ModelSpec) -> Plan:
    require_prompt(request)
    width, height = exact_size(request, spec)
    return make_plan(request, spec, width=width, height=height)


def start(request: TextToVideo, plan: Plan, previous: ClipStart | None) -> ClipStart | None:
    """A text-to-video model sees no picture."""
    return None


def condition(components: Components, plan: Plan, text: TextEmbeddings, start: ClipStart | None) -> Conditioning:
    return Conditioning(positive=Inputs(text=text.positive), negative=Inputs(text=text.negative))
