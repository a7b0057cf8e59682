"""Text to video, or text and a picture to video, with one model whose first latent frame can be given.

The picture becomes the first latent frame, which is pinned: it is written back after every step and its tokens have
timestep 0.
"""
from __future__ import annotations

import torch

from kinograph.config import ModelSpec
from kinograph.media import read_image, resize_lanczos_crop
from kinograph.models.dit import Inputs
from kinograph.requests import TextImageToVideo
from kinograph.runtime.placement import Components
from kinograph.sampling.denoise import Conditioning, Pinned
from kinograph.tasks.geometry import ti2v_size
from kinograph.tasks.inputs import Carry, ClipInputs, Pictures, TextEmbeddings
from kinograph.tasks.plan import Plan, check_aspect, exact_size, make_plan, requested_size, require_prompt


def plan(request: TextImageToVideo, spec: ModelSpec) -> Plan:
    if request.image is None:
        require_prompt(request)
        width, height = exact_size(request, spec)
    else:
        picture = read_image(request.image)
        check_aspect(picture.width, picture.height)
        asked_width, asked_height = requested_size(request, spec)
        width, height = ti2v_size(picture.width, picture.height, asked_width * asked_height, spec.size_multiple)
    return make_plan(request, spec, width=width, height=height, num_clips=request.num_clips, smooth_joins=request.smooth_joins)


def prepare(components: Components, request: TextImageToVideo, plan: Plan) -> Pictures | None:
    """The request's picture scaled to cover the frame and cropped at the centre."""
    if request.image is None:
        return None
    return Pictures(first=resize_lanczos_crop(read_image(request.image), plan.width, plan.height))


def condition(
    components: Components, plan: Plan, text: TextEmbeddings, prepared: Pictures | None, clip: int, carry: Carry | None
) -> ClipInputs:
    """A later clip continues from the last frame of the one before, which it repeats and does not contribute."""
    start = prepared if carry is None else Pictures(first=carry.frames[:, -1])
    pinned = None
    if start is not None:
        with components.place("vae") as vae:
            video = start.first[None, :, None].to(components.device, components.vae_dtype)  # [1, 3, 1, H, W]
            first_latent = vae.encode(video).float()
        mask = torch.zeros(1, 1, plan.latent_shape[1], 1, 1, device=components.device)
        mask[:, :, 0] = 1.0
        pinned = Pinned(latents=first_latent, mask=mask)
    conditioning = Conditioning(positive=Inputs(text=text.positive), negative=Inputs(text=text.negative), pinned=pinned)
    return ClipInputs(conditioning=conditioning, drop_frames=0 if carry is None else 1)
