"""Text to video: the prompt is the whole condition."""
from __future__ import annotations

from kinograph.config import ModelSpec
from kinograph.models.dit import Inputs
from kinograph.requests import TextToVideo
from kinograph.runtime.placement import Components
from kinograph.sampling.denoise import Conditioning
from kinograph.tasks.inputs import Carry, ClipInputs, TextEmbeddings
from kinograph.tasks.plan import Plan, exact_size, make_plan, require_prompt


def plan(request: TextToVideo, spec: ModelSpec) -> Plan:
    require_prompt(request)
    width, height = exact_size(request, spec)
    return make_plan(request, spec, width=width, height=height)


def prepare(components: Components, request: TextToVideo, plan: Plan) -> None:
    """A text-to-video model sees no picture."""


def condition(components: Components, plan: Plan, text: TextEmbeddings, prepared: None, clip: int, carry: Carry | None) -> ClipInputs:
    return ClipInputs(conditioning=Conditioning(positive=Inputs(text=text.positive), negative=Inputs(text=text.negative)))
