"""What an image editor is asked for, so that two people stand alike and their limbs can be compared."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kinograph.preprocess.animate.keypoints import (
    L_ANKLE,
    L_ELBOW,
    L_KNEE,
    L_WRIST,
    R_ANKLE,
    R_ELBOW,
    R_KNEE,
    R_WRIST,
    Skeleton,
)

VISIBLE = 0.75  # score
_LEGS, _ARMS = (R_KNEE, R_ANKLE, L_KNEE, L_ANKLE), (R_ELBOW, R_WRIST, L_ELBOW, L_WRIST)
_LANDSCAPE = "Change the person to a standard T-pose (facing forward with arms extended)."
_PORTRAIT = "Change the person to a standard pose with the face oriented forward and arms extending straight down by the sides."
_STANDING = " The person is standing. Feet and Hands are visible in the image."
_HANDS = " Hands are visible in the image."
_FACE_ONLY = "Change the person to face forward."


def edit_prompts(frames: Sequence[Skeleton], *sizes: tuple[int, int]) -> list[str]:
    """The prompt for each picture of `sizes` (width, height), by how much of the person the driving `frames` show.

    `frames`: skeletons in fractions of the frame.
    """
    bodies = np.stack([frame.body for frame in frames])
    if _any_visible(bodies, _LEGS):
        shown = _STANDING
    elif _any_visible(bodies, _ARMS):
        shown = _HANDS
    else:
        return [_FACE_ONLY] * len(sizes)
    return [(_LANDSCAPE if width > height else _PORTRAIT) + shown for width, height in sizes]


def _any_visible(bodies: np.ndarray, joints: tuple[int, ...]) -> bool:
    rows = bodies[:, list(joints)]
    within = (rows[..., :2] <= 1).all(axis=-1) & (rows != 0).all(axis=-1)
    return bool((within & (rows[..., 2] >= VISIBLE)).any())
