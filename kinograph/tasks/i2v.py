"""Image to video: the picture enters as conditioning channels beside the noise.

The channels are a mask (four, one per frame that a latent frame stands for) and the latents of a video that holds the
given pictures and mid-grey everywhere else.
"""
from __future__ import annotations

import torch

from kinograph.config import ModelSpec
from kinograph.errors import RequestError
from kinograph.media import read_image, resize_bicubic
from kinograph.models.dit import Inputs
from kinograph.models.vae import VAE
from kinograph.requests import ImageToVideo
from kinograph.runtime.placement import Components
from kinograph.sampling.denoise import Conditioning
from kinograph.sampling.masks import frame_mask
from kinograph.tasks.geometry import i2v_size
from kinograph.tasks.inputs import Carry, ClipInputs, Pictures, TextEmbeddings
from kinograph.tasks.plan import Plan, check_aspect, make_plan, requested_size

ASPECT_TOLERANCE = 0.05  # a last picture may differ this much from the first one's aspect before it would look squeezed


def plan(request: ImageToVideo, spec: ModelSpec) -> Plan:
    if request.image is None:
        raise RequestError(f"{spec.name} animates a picture; give one with --image FILE")
    picture = read_image(request.image)
    check_aspect(picture.width, picture.height)
    asked_width, asked_height = requested_size(request, spec)
    width, height = i2v_size(picture.width, picture.height, asked_width * asked_height, spec.size_multiple)
    if request.last_image is not None:
        _check_last(read_image(request.last_image).size, picture.size)
        if request.num_clips != 1:
            raise RequestError(f"--last_image says how the video ends, so it needs --num_clip 1; got {request.num_clips}")
    return make_plan(request, spec, width=width, height=height, num_clips=request.num_clips, smooth_joins=request.smooth_joins)


def prepare(components: Components, request: ImageToVideo, plan: Plan) -> Pictures:
    """The request's pictures at the size of the clip."""
    last = None if request.last_image is None else resize_bicubic(read_image(request.last_image), plan.width, plan.height)
    return Pictures(first=resize_bicubic(read_image(request.image), plan.width, plan.height), last=last)


def condition(
    components: Components, plan: Plan, text: TextEmbeddings, prepared: Pictures, clip: int, carry: Carry | None
) -> ClipInputs:
    """A later clip continues from the last frame of the one before, which it repeats and does not contribute."""
    start = prepared if carry is None else Pictures(first=carry.frames[:, -1])
    with components.place("vae") as vae:
        channels = conditioning_channels(
            vae, start.first.to(components.device), None if start.last is None else start.last.to(components.device), plan.num_frames
        )
    conditioning = Conditioning(
        positive=Inputs(text=text.positive, channels=channels), negative=Inputs(text=text.negative, channels=channels)
    )
    return ClipInputs(conditioning=conditioning, drop_frames=0 if carry is None else 1)


def conditioning_channels(vae: VAE, first: torch.Tensor, last: torch.Tensor | None, num_frames: int) -> torch.Tensor:
    """[1, 4 + z, T, h, w] float32: the mask, then the latents of the given pictures among grey frames.

    `first`, `last`: [3, H, W] in [-1, 1].
    """
    dtype = next(vae.parameters()).dtype
    video = first.new_zeros(1, 3, num_frames, *first.shape[-2:], dtype=dtype)
    video[0, :, 0] = first
    if last is not None:
        video[0, :, -1] = last
    latents = vae.encode(video).float()
    mask = frame_mask(num_frames, has_last=last is not None, stride=vae.config.stride[0]).to(latents.device)
    return torch.cat([mask[None, :, :, None, None].expand(1, -1, -1, *latents.shape[-2:]), latents], dim=1)


def _check_last(last: tuple[int, int], first: tuple[int, int]) -> None:
    ratio = (last[0] / last[1]) / (first[0] / first[1])
    if not 1 - ASPECT_TOLERANCE <= ratio <= 1 / (1 - ASPECT_TOLERANCE):
        raise RequestError(
            f"the last image is {last[0]}x{last[1]} and the first {first[0]}x{first[1]}; "
            "both must have the same aspect ratio: crop one of them"
        )
