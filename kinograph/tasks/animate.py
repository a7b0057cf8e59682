"""Character animation and replacement: a skeleton and a face drive a picture, clip by clip.

What serves the whole video is made once (`prepare`): the reference picture's latents and image features. A clip adds its faces, its
pose, its background and the last frames of the clip before. Faces are encoded by the transformer, and so when it is there for the clip.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from kinograph.config import AnimateConfig, ModelSpec
from kinograph.errors import RequestError
from kinograph.media import FrameReader, Sound, read_image, read_sound
from kinograph.media.letterbox import letterbox, resize_average
from kinograph.models.dit_animate import AnimateDiT, Inputs
from kinograph.requests import Animate
from kinograph.runtime.placement import Components
from kinograph.sampling.denoise import Conditioning
from kinograph.tasks import animate_clips as clips
from kinograph.tasks.animate_material import Material, find_material
from kinograph.tasks.inputs import Carry, ClipInputs, TextEmbeddings
from kinograph.tasks.plan import Plan, make_plan

MODES = ("animate", "replace")
OVERLAPS = (1, 5)  # the model was trained with no others
MASK_THRESHOLD = 127  # levels above are the person; video compression leaves noise around 0 and 255


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What all clips of a run share. Tensors are on the device of the transformer."""

    pose: FrameReader
    face: FrameReader
    background: FrameReader | None
    mask: FrameReader | None
    num_frames: int  # of each of them
    overlap: int
    reference: Tensor  # [1, stride + z, 1, h, w]
    image: Tensor  # [1, I, image_dim]: the image encoder's tokens
    sound: Sound | None


# ------------------------------------------------------------------------------------------------------------- plan


def plan(request: Animate, spec: ModelSpec) -> Plan:
    material = material_of(request, spec)
    length = spec.num_frames if request.num_frames is None else request.num_frames
    if length <= request.overlap:
        raise RequestError(
            f"num_frames must be more than the {request.overlap} that a clip takes over from the one before; got {length} "
            f"(the default of {spec.name} is {spec.num_frames})"
        )
    starts = clips.clip_starts(material.num_frames, length, request.overlap)
    fps = material.fps if request.fps is None else request.fps
    return make_plan(
        dataclasses.replace(request, fps=fps),
        spec,
        width=material.width,
        height=material.height,
        num_clips=len(starts),
        latent_frames=1 + spec.vae.latent_size(num_frames=length, height=material.height, width=material.width)[0],
        total_frames=material.num_frames,
        carry_frames=request.overlap,
        one_noise_stream=True,
        anchor=request.anchor,
        smooth_joins=request.smooth_joins,
        warnings=tuple(_warnings(request, material, fps)),
    )


def material_of(request: Animate, spec: ModelSpec) -> Material:
    """The material of the request, checked with its settings. Raises RequestError and MediaError."""
    if request.material is None:
        raise RequestError(
            f"{spec.name} is driven by material made beforehand; give its folder with --src_root_path DIR "
            "(`kinograph preprocess` makes it, and `kinograph animate` does both)"
        )
    if request.mode not in MODES:
        raise RequestError(f"mode must be one of {', '.join(MODES)}; got {request.mode!r}")
    if request.overlap not in OVERLAPS:
        raise RequestError(f"overlap must be 1 or 5, the numbers of frames that the model was trained to go on from; got {request.overlap}")
    return find_material(
        request.material, replace=request.mode == "replace", face_size=_config(spec).face_size, size_multiple=spec.size_multiple
    )


def _config(spec: ModelSpec) -> AnimateConfig:
    assert isinstance(spec.dit, AnimateConfig), f"{spec.name} is not an animation model"
    return spec.dit


def _warnings(request: Animate, material: Material, fps: float) -> Iterator[str]:
    asked = (request.width, request.height)
    if asked not in ((None, None), (material.width, material.height)):
        yield f"the size {asked[0]}*{asked[1]} is ignored: frames are as large as the material, {material.width}*{material.height}"
    if material.sound is not None and fps != material.fps:
        yield f"the sound is left out: at {fps:g} frames a second the video is not as fast as its source, which has {material.fps:g}"


# ----------------------------------------------------------------------------------------------------------- prepare


def prepare(components: Components, request: Animate, plan: Plan) -> Prepared:
    """Reads and encodes the reference picture."""
    material = material_of(request, components.spec)
    picture = reference_picture(material).to(components.device)
    with components.place("image_encoder") as encoder:
        features = encoder(picture[None])
    with components.place("vae") as vae:
        reference = clips.reference_channels(vae, picture)
    return Prepared(
        pose=FrameReader(material.pose),
        face=FrameReader(material.face),
        background=None if material.background is None else FrameReader(material.background),
        mask=None if material.mask is None else FrameReader(material.mask),
        num_frames=material.num_frames,
        overlap=request.overlap,
        reference=reference,
        image=features,
        sound=None if material.sound is None or plan.fps != material.fps else read_sound(material.sound),
    )


def reference_picture(material: Material) -> Tensor:
    """[3, H, W] in [-1, 1]: the character, fitted into the frame with black beside."""
    pixels = torch.from_numpy(np.array(read_image(material.reference)))
    return as_pixels(letterbox(pixels, material.width, material.height)[None])[:, 0]


def as_pixels(frames: Tensor) -> Tensor:
    """float32 [3, frames, H, W] in [-1, 1] for levels [frames, H, W, 3] from 0 to 255."""
    return (frames.float() / 127.5 - 1).permute(3, 0, 1, 2).contiguous()


def frame_numbers(start: int, length: int, num_frames: int) -> list[int]:
    """Of the frames of a video, those of the clip that begins at `start`: past the end it is played backwards."""
    return clips.back_and_forth(num_frames, start + length)[start:]


def _faces(reader: FrameReader, numbers: list[int], size: int) -> Tensor:
    """[1, 3, frames, size, size] in [-1, 1]; larger crops are shrunk by averaging."""
    faces = reader.read(numbers)
    return as_pixels(faces if faces.shape[1] == size else resize_average(faces, size, size))[None]


def _is_guided(plan: Plan) -> bool:
    return any(scale != 1 for scale in plan.guidance.values())


# --------------------------------------------------------------------------------------------------------- condition


def condition(
    components: Components, plan: Plan, text: TextEmbeddings, prepared: Prepared, clip: int, carry: Carry | None
) -> ClipInputs:
    start = clip * (plan.num_frames - prepared.overlap)
    numbers = frame_numbers(start, plan.num_frames, prepared.num_frames)
    guidance = None if carry is None else carry.frames
    given = 0 if guidance is None else guidance.shape[1]
    mask = clips.mask_channels(
        _person(prepared.mask, numbers),
        num_frames=plan.num_frames,
        size=plan.latent_shape[2:],
        num_given=given,
        stride=components.spec.vae.stride[0],
    )
    pixels = clips.given_pixels(
        guidance=guidance,
        background=None if prepared.background is None else as_pixels(prepared.background.read(numbers)),
        num_frames=plan.num_frames,
        size=(plan.height, plan.width),
    )
    with components.place("vae") as vae:
        channels = clips.conditioning_channels(vae, prepared.reference, pixels.to(components.device), mask)
        pose = vae.encode(as_pixels(prepared.pose.read(numbers))[None].to(components.device))
    faces = _faces(prepared.face, numbers, _config(components.spec).face_size).to(components.device)
    return ClipInputs(
        conditioning=partial(
            embedded, text=text, channels=channels, pose=pose, image=prepared.image, faces=faces, guided=_is_guided(plan)
        ),
        skip_latents=1,  # the reference picture's
        drop_frames=given,
        keep_frames=min(plan.num_frames, prepared.num_frames - start) - given,
    )


def embedded(
    model: nn.Module, *, text: TextEmbeddings, channels: Tensor, pose: Tensor, image: Tensor, faces: Tensor, guided: bool
) -> Conditioning:
    """What the transformer `model` takes for a clip of `faces` [1, 3, F, S, S]; if not `guided`, nothing to guide away from."""
    dit = cast(AnimateDiT, model)
    positive = Inputs(
        text=text.positive, channels=channels, pose=pose, image=dit.image_tokens(image), face=dit.face_tokens(dit.motion(faces))
    )
    if not guided:
        return Conditioning(positive=positive)
    no_face = dit.face_tokens(dit.no_motion(faces.shape[2]))
    return Conditioning(positive=positive, negative=dataclasses.replace(positive, text=text.negative, face=no_face))


def _person(mask: FrameReader | None, numbers: list[int]) -> Tensor | None:
    """float32 [frames, H, W]: 1 where the person is to be replaced, 0 elsewhere."""
    return None if mask is None else (mask.read(numbers)[..., 0] > MASK_THRESHOLD).float()
