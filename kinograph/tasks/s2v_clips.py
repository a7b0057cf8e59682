"""Speech to video, clip by clip: which sound, motion and pose each clip is given, and which frames it contributes.

    video    clip 0 (F frames, the first 3 dropped) | clip 1 (F frames) | ...
    sound    one feature per frame, taken from features at 30 Hz
    motion   the 73 newest frames, encoded, from clip 1 on; in clip 0 there is none, or the reference picture stands still

Tensors and integers only. F, the frames of a clip, is a multiple of 4.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kinograph.models.wav2vec2 import SAMPLE_RATE, num_features

HEARD_RATE = 50  # features per second, nominally, that the speech encoder gives
FEATURE_RATE = 30  # features per second that frames pick theirs from
MOTION_FRAMES = 73
MOTION_LATENTS = 19  # of so many frames
DROPPED_FRAMES = 3  # at the start of a video whose first clip has no motion to go on from
STILL_FRAMES = 6  # of the reference picture, where the first clip goes on from it

# ---------------------------------------------------------------------------------------------------------- sound


def num_features_30(num_samples: int) -> int:
    """Features at 30 Hz of a sound of so many samples at 16 kHz; 0 if it is too short for any."""
    return max(0, int(num_features(num_samples) / HEARD_RATE * FEATURE_RATE))  # in this order, as published: 123, not 122.99..


def at_30_hz(hidden: Tensor) -> Tensor:
    """[S, T30, C]: hidden states [S, T50, C] at 50 Hz interpolated along time, both ends kept."""
    length = int(hidden.shape[1] / HEARD_RATE * FEATURE_RATE)
    return F.interpolate(hidden.transpose(1, 2), size=length, mode="linear", align_corners=True).transpose(1, 2)


def published_num_clips(num_features: int, clip_frames: int, fps: int = 16) -> int:
    """Clips that the published code makes of so many features at 30 Hz: one too many where they fill the last one exactly."""
    return int(num_features / (clip_frames * FEATURE_RATE / fps)) + 1


def needed_num_clips(num_samples: int, clip_frames: int, *, dropped: int = DROPPED_FRAMES, fps: int = 16) -> int:
    """Clips whose frames, without those `dropped` at the start, last as long as a sound of so many samples at 16 kHz."""
    frames = -(-num_samples * fps // SAMPLE_RATE)
    return -(-(frames + dropped) // clip_frames)


def feature_indices(num_frames: int, fps: int = 16) -> list[int]:
    """For each video frame, the feature at 30 Hz it hears: the nearest in time, of two equally near the even one."""
    last = math.ceil(num_frames / fps * FEATURE_RATE) - 1
    return [min(round(frame * (1 / fps) * FEATURE_RATE), last) for frame in range(num_frames)]


def frame_features(features: Tensor, num_frames: int, *, fps: int = 16, neighbours: int = 0) -> Tensor:
    """[1, S, C·(2·neighbours + 1), num_frames]: what each video frame hears of `features` [S, T30, C].

    Frames after the end of the sound hear zeros, which is not what silence sounds like. `neighbours` features on either side, kept
    within the sound, come before and after a frame's own along the channels.
    """
    length = features.shape[1]
    indices = torch.tensor(feature_indices(num_frames, fps), device=features.device)
    offsets = torch.arange(-neighbours, neighbours + 1, device=features.device) * (FEATURE_RATE // fps)
    near = (indices[:, None] + offsets).clamp(0, length - 1)  # [frames, 2·neighbours + 1]
    heard = features[:, near].flatten(2)  # [S, frames, (2·neighbours + 1)·C]
    heard = torch.where((indices < length)[:, None], heard, 0.0)
    return heard.transpose(1, 2).unsqueeze(0)


# --------------------------------------------------------------------------------------------------------- motion


def first_motion(reference: Tensor, *, start_from_reference: bool) -> Tensor:
    """[B, 3, 73, H, W]: mid-grey, at its end the picture `reference` [B, 3, 1, H, W] standing still if the video starts from it."""
    motion = reference.new_zeros(*reference.shape[:2], MOTION_FRAMES, *reference.shape[3:])
    if start_from_reference:
        motion[:, :, -STILL_FRAMES:] = reference
    return motion


def next_motion(motion: Tensor, frames: Tensor) -> Tensor:
    """The 73 newest frames after a clip [B, 3, n, H, W]; frames stay floats, so nothing is lost from clip to clip."""
    return torch.cat([motion, frames], dim=2)[:, :, -MOTION_FRAMES:]


def latents_to_decode(latents: Tensor, *, reference: Tensor, motion: Tensor | None) -> Tensor:
    """A clip's latents behind those that the decoder, which is causal, warms up on: the motion's, or the reference's."""
    return torch.cat([reference if motion is None else motion, latents], dim=2)


def new_frames(video: Tensor, clip_frames: int, *, has_motion: bool) -> Tensor:
    """The frames [B, 3, n, H, W] that a clip contributes, of what `latents_to_decode` decodes to."""
    frames = video[:, :, -clip_frames:]
    return frames if has_motion else frames[:, :, DROPPED_FRAMES:]


# ----------------------------------------------------------------------------------------------------------- pose


def pose_frame_indices(available: int, source_fps: float, wanted: int, *, fps: int = 16) -> list[int]:
    """Frames of a pose video of `available` frames that are nearest in time to the first `wanted` video frames; fewer if it ends."""
    nearest = (math.floor(frame * source_fps / fps + 0.5) for frame in range(wanted))
    return [index for index in nearest if index < available]


def published_pose_frame_indices(available: int, source_fps: float, wanted: int, *, fps: int = 16) -> list[int]:
    """The same as published: every step-th frame, which plays a video of another rate too fast or too slow."""
    step = max(1, round(source_fps / fps))
    return list(range(0, available, step))[:wanted]


def pose_clip(pose: Tensor, clip: int, clip_frames: int) -> Tensor:
    """[B, 3, F + 1, H, W] to encode for a clip, of `pose` [B, 3, n, H, W] in [-1, 1]; drop the first latent frame of the result.

    The first frame comes twice, as the VAE takes 4n + 1 frames. Where the pose video has ended, frames are black.
    """
    part = pose[:, :, clip * clip_frames : (clip + 1) * clip_frames]
    part = F.pad(part, (0, 0, 0, 0, 0, clip_frames - part.shape[2]), value=-1.0)
    return torch.cat([part[:, :, :1], part], dim=2)
