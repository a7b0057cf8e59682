"""Speech to video: a picture, a sound and, if given, a pose video become one clip after another, as long as the sound.

What each clip is given is decided in `s2v_clips.py`; here it is read, encoded and handed over. Other than the published code:

- as many clips as the sound needs, and the video ends with the sound
- picture and pose fill the frame; a pose video is read by time, whatever its rate
- latents and carried frames are float32; nothing is encoded that no model sees
"""
from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinograph.config import ModelSpec
from kinograph.errors import MediaError, RequestError
from kinograph.media import FrameReader, Sound, count_frames, probe, read_image, read_sound
from kinograph.media.fit import fit_frames, fit_picture
from kinograph.models.dit_s2v import Clip, S2VDiT
from kinograph.models.wav2vec2 import SAMPLE_RATE
from kinograph.requests import SpeechToVideo
from kinograph.runtime.placement import Components
from kinograph.sampling.denoise import Conditioning
from kinograph.tasks.geometry import s2v_size
from kinograph.tasks.inputs import Carry, ClipInputs, TextEmbeddings
from kinograph.tasks.plan import Plan, check_aspect, make_plan, requested_size
from kinograph.tasks.s2v_clips import (
    DROPPED_FRAMES,
    MOTION_FRAMES,
    MOTION_LATENTS,
    at_30_hz,
    first_motion,
    frame_features,
    needed_num_clips,
    next_motion,
    num_features_30,
    pose_clip,
    pose_frame_indices,
)

CARRIES = ("pixels", "latents")
STRIDE = 4  # frames of a latent frame
WASTEFUL = 8  # a last clip of which less than one in so many frames is used


@dataclass(frozen=True, kw_only=True)
class PoseVideo:
    """Skeletons to follow: which frames of which file belong to the frames of the video, and the size to bring them to."""

    reader: FrameReader
    indices: tuple[int, ...]  # one for each frame of the video; fewer where the file ends before
    width: int
    height: int

    def frames(self, start: int, stop: int) -> Tensor:
        """[1, 3, n, H, W] float32 in [-1, 1] for the frames from `start` to before `stop`; fewer where the file has ended."""
        indices = self.indices[start:stop]
        if not indices:
            return torch.empty(1, 3, 0, self.height, self.width)
        return fit_frames(self.reader.read(indices), self.width, self.height)[None]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What serves all clips."""

    sound: Sound  # that goes into the file
    heard: Tensor  # [1, S, C, frames of all clips] float32 on the CPU: what the speech encoder made of the sound
    picture: Tensor  # [1, 3, 1, H, W] float32 in [-1, 1] on the CPU
    reference: Tensor  # [1, z, 1, h, w] float32: its latents
    start_from_reference: bool
    pose: PoseVideo | None


# ----------------------------------------------------------------------------------------------------------- plan


def plan(request: SpeechToVideo, spec: ModelSpec) -> Plan:
    if request.image is None:
        raise RequestError(f"{spec.name} makes a person speak; give a picture of one with --image FILE")
    if request.carry not in CARRIES:
        raise RequestError(f"carry must be one of {', '.join(CARRIES)}; got {request.carry!r}")
    if request.fps not in (None, spec.fps):
        raise RequestError(f"{spec.name} moves with the sound at {spec.fps} frames per second; got fps {request.fps}: leave it out")
    if not math.isfinite(request.sound_offset):
        raise RequestError(f"sound_offset must be a finite number of seconds; got {request.sound_offset}")
    clip_frames = _clip_frames(request, spec)
    picture = read_image(request.image)
    check_aspect(picture.width, picture.height)
    asked_width, asked_height = requested_size(request, spec)
    width, height = s2v_size(picture.width, picture.height, asked_width * asked_height)

    num_samples = len(_wave(sound_of(request, spec)))
    dropped = 0 if request.start_from_reference else DROPPED_FRAMES
    needed = needed_num_clips(num_samples, clip_frames, dropped=dropped, fps=spec.fps)
    num_clips = needed if request.num_clips is None else min(request.num_clips, needed)
    total_frames = min(-(-num_samples * spec.fps // SAMPLE_RATE), num_clips * clip_frames - dropped)
    plan = make_plan(
        request,
        spec,
        width=width,
        height=height,
        num_clips=num_clips,
        num_frames=clip_frames,
        latent_frames=clip_frames // STRIDE,
        total_frames=total_frames,
        carry_frames=MOTION_FRAMES,
        carry_latents=MOTION_LATENTS if request.carry == "latents" else 0,
        anchor=request.anchor,
        smooth_joins=request.smooth_joins,
        warnings=(
            *_pose_warnings(request, spec, total_frames + dropped),
            *_waste_warnings(spec, num_clips, clip_frames, total_frames + dropped),
        ),
    )
    # As published, a scale below 1 guides no more than 1 does.
    return replace(plan, guidance={name: max(1.0, scale) for name, scale in plan.guidance.items()})


def sound_of(request: SpeechToVideo, spec: ModelSpec) -> Sound:
    """The sound to speak, checked: there, and long enough to be heard."""
    if request.audio is None:
        raise RequestError(f"{spec.name} speaks a sound; give one with --audio FILE, or a text to say with --tts_text")
    if isinstance(request.audio, Sound):
        sound, name = request.audio, "the given sound"
    elif isinstance(request.audio, (str, os.PathLike)):
        sound, name = read_sound(request.audio), str(request.audio)
    else:
        raise RequestError(f"audio must be a path or a Sound; got {type(request.audio).__name__}")
    if not sound.samples.isfinite().all():
        raise MediaError(f"{name} holds values that are not numbers; write it anew from its source")
    if not num_features_30(len(_wave(sound))):
        raise MediaError(f"{name} lasts {sound.seconds:.3f} s, which is too short to hear anything in; give at least 0.045 s of sound")
    return sound


def _wave(sound: Sound) -> Tensor:
    """float32 [n] at the rate of the speech encoder."""
    return sound.mono(SAMPLE_RATE)


def _clip_frames(request: SpeechToVideo, spec: ModelSpec) -> int:
    frames = spec.num_frames if request.num_frames is None else request.num_frames
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < STRIDE:
        raise RequestError(f"num_frames must be a whole number at least {STRIDE}; got {frames!r}")
    if frames % STRIDE:
        below = frames // STRIDE * STRIDE
        raise RequestError(
            f"num_frames must be a multiple of {STRIDE} for a clip of {spec.name}; got {frames} (nearest: {below}, {below + STRIDE})"
        )
    return frames


def _pose_warnings(request: SpeechToVideo, spec: ModelSpec, num_frames: int) -> tuple[str, ...]:
    if request.pose_video is None:
        return ()
    info = probe(request.pose_video)
    seconds, needed = info.duration, num_frames / spec.fps
    if seconds is None or seconds >= needed - 1 / spec.fps:
        return ()
    return (f"{request.pose_video} lasts {seconds:.2f} s and the video needs {needed:.2f} s of poses; from there on the pose is black",)


def _waste_warnings(spec: ModelSpec, num_clips: int, clip_frames: int, num_frames: int) -> tuple[str, ...]:
    """A sound that is a little longer than whole clips costs a clip more, which is for the user to weigh."""
    used = num_frames - (num_clips - 1) * clip_frames
    if num_clips == 1 or used > clip_frames // WASTEFUL:
        return ()
    return (
        f"of the last clip's {clip_frames} frames only {used} are used, as the sound goes on for {used / spec.fps:.2f} s; "
        f"--num_clip {num_clips - 1} leaves that end, and the clip, out",
    )


# -------------------------------------------------------------------------------------------------------- prepare


def prepare(components: Components, request: SpeechToVideo, plan: Plan) -> Prepared:
    spec = components.spec
    sound = sound_of(request, spec)
    picture = fit_picture(read_image(request.image), plan.width, plan.height)[None, :, None]
    return Prepared(
        sound=shifted(sound, request.sound_offset),
        heard=hear(components, _wave(sound), num_frames=plan.num_clips * plan.num_frames),
        picture=picture,
        reference=encode(components, picture),
        start_from_reference=request.start_from_reference,
        pose=pose_of(request, spec, plan),
    )


def hear(components: Components, wave: Tensor, *, num_frames: int) -> Tensor:
    """[1, S, C, num_frames] float32 on the CPU: what each frame hears of `wave` [n] at 16 kHz."""
    with components.place("speech_encoder") as encoder:
        dtype = next(encoder.parameters()).dtype
        hidden = encoder(wave[None].to(components.device, dtype))[0]  # [S, T50, C]
        features = at_30_hz(hidden.float()).cpu()
    return frame_features(features, num_frames, fps=components.spec.fps)


def encode(components: Components, video: Tensor) -> Tensor:
    """Latents [1, z, T, h, w] float32, on the device, of `video` [1, 3, n, H, W] in [-1, 1]."""
    with components.place("vae") as vae:
        return vae.encode(video.to(components.device, components.vae_dtype)).float()


def pose_of(request: SpeechToVideo, spec: ModelSpec, plan: Plan) -> PoseVideo | None:
    if request.pose_video is None:
        return None
    info, wanted = probe(request.pose_video), plan.num_clips * plan.num_frames
    indices = pose_frame_indices(count_frames(request.pose_video), info.fps, wanted, fps=spec.fps)
    return PoseVideo(reader=FrameReader(request.pose_video), indices=tuple(indices), width=plan.width, height=plan.height)


def shifted(sound: Sound, seconds: float) -> Sound:
    """`sound` with silence before it, or, where `seconds` is negative, without its beginning."""
    samples = round(seconds * sound.rate)
    return sound if not samples else replace(sound, samples=F.pad(sound.samples, (max(samples, -sound.samples.shape[1]), 0)))


# ------------------------------------------------------------------------------------------------------ condition


def condition(
    components: Components, plan: Plan, text: TextEmbeddings, prepared: Prepared, clip: int, carry: Carry | None
) -> ClipInputs:
    start, stop = clip * plan.num_frames, (clip + 1) * plan.num_frames
    motion = motion_latents(components, plan, prepared, carry)
    given = Clip(
        text=text.positive,
        audio=prepared.heard[..., start:stop].to(components.device),
        reference=prepared.reference.to(components.device),
        motion=motion,
        pose=None if prepared.pose is None else pose_latents(components, prepared.pose, start, stop),
    )
    guided = plan.preset is not None or any(scale != 1 for scale in plan.guidance.values())  # a preset may guide single steps
    dropped = DROPPED_FRAMES if motion is None else 0
    lead = given.reference if motion is None else motion
    warm_up = 1 + STRIDE * (lead.shape[2] - 1)  # frames that the lead decodes to
    before = start if prepared.start_from_reference or clip == 0 else start - DROPPED_FRAMES
    left = plan.total_frames - before
    return ClipInputs(
        conditioning=partial(embedded, given=given, negative_text=text.negative if guided else None),
        lead=lead,
        drop_frames=warm_up + dropped,
        keep_frames=left if left < plan.num_frames - dropped else None,
    )


def embedded(model: nn.Module, *, given: Clip, negative_text: Tensor | None) -> Conditioning:
    """What the transformer `model` takes for a clip; without a negative text nothing is made to guide away from."""
    dit = cast(S2VDiT, model)
    if negative_text is None:
        return Conditioning(positive=dit.embed(given))
    positive, negative = dit.embed_pair(given, negative_text)
    return Conditioning(positive=positive, negative=negative)


def motion_latents(components: Components, plan: Plan, prepared: Prepared, carry: Carry | None) -> Tensor | None:
    """[1, z, n, h, w] of what came before the clip; None where nothing did."""
    if carry is None and not prepared.start_from_reference:
        return None
    still = first_motion(prepared.picture, start_from_reference=prepared.start_from_reference)
    if carry is None:
        return encode(components, still)
    if plan.carry_latents and carry.latents is not None:
        latents = carry.latents[None].to(components.device)
        if prepared.start_from_reference and latents.shape[2] < MOTION_LATENTS:
            latents = torch.cat([encode(components, still), latents], dim=2)
        return latents[:, :, -MOTION_LATENTS:]
    return encode(components, next_motion(still, carry.frames[None]))


def pose_latents(components: Components, pose: Any, start: int, stop: int) -> Tensor:
    """[1, z, T, h, w] of the poses of one clip."""
    return encode(components, pose_clip(pose.frames(start, stop), 0, stop - start))[:, :, 1:]
