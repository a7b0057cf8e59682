"""Whole-body keypoints and the skeleton that is drawn from them.

A point is a row (x, y, score). 133 whole-body points (COCO-WholeBody): 17 body, 6 feet, 68 face, 21 left hand, 21 right
hand. The skeleton has a body of its own 20 joints, some of them midpoints.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_WHOLE_BODY = 133
FACE = slice(23, 91)
LEFT_HAND = slice(91, 112)
RIGHT_HAND = slice(112, 133)

# Joints of the body; "R" is the person's own right.
NOSE, NECK, R_SHOULDER, R_ELBOW, R_WRIST, L_SHOULDER, L_ELBOW, L_WRIST, R_HIP, R_KNEE = range(10)
R_ANKLE, L_HIP, L_KNEE, L_ANKLE, R_EYE, L_EYE, R_EAR, L_EAR, L_TOE, R_TOE = range(10, 20)
_FROM_WHOLE_BODY = (
    (0, 0), (6, 5), (6, 6), (8, 8), (10, 10), (5, 5), (7, 7), (9, 9), (12, 12), (14, 14),
    (16, 16), (11, 11), (13, 13), (15, 15), (2, 2), (1, 1), (4, 4), (3, 3), (17, 18), (20, 21),
)  # fmt: skip

# Limbs, as they are drawn and retargeted: each starts where an earlier one ends, or at the neck.
LIMBS = (
    (NECK, R_SHOULDER), (NECK, L_SHOULDER), (R_SHOULDER, R_ELBOW), (R_ELBOW, R_WRIST), (L_SHOULDER, L_ELBOW), (L_ELBOW, L_WRIST),
    (NECK, R_HIP), (R_HIP, R_KNEE), (R_KNEE, R_ANKLE), (NECK, L_HIP), (L_HIP, L_KNEE), (L_KNEE, L_ANKLE),
    (NECK, NOSE), (NOSE, R_EYE), (R_EYE, R_EAR), (NOSE, L_EYE), (L_EYE, L_EAR), (L_ANKLE, L_TOE), (R_ANKLE, R_TOE),
)  # fmt: skip
LIMB_NAMES = (
    "right shoulder", "left shoulder", "right upper arm", "right forearm", "left upper arm", "left forearm",
    "right side", "right thigh", "right shin", "left side", "left thigh", "left shin",
    "neck", "right eye", "right ear", "left eye", "left ear", "left foot", "right foot",
)  # fmt: skip
LARGER_OF_PAIR = ((0, 1), (2, 4), (3, 5), (6, 9), (7, 10), (8, 11), (17, 18))  # limbs of both sides
MEAN_OF_PAIR = ((13, 15), (14, 16))
SEEN = 0.4  # score of joints and fingers that are believed to be there


@dataclass(frozen=True, eq=False)
class Skeleton:
    """Float64 rows (x, y, score). Whether x and y are pixels or fractions of the frame is said where it is used.

    A point that is missing has NaN for x and y, or a low score.
    """

    body: np.ndarray  # [20, 3]
    left_hand: np.ndarray  # [21, 3]
    right_hand: np.ndarray  # [21, 3]

    def scaled(self, x: float, y: float) -> Skeleton:
        """With the coordinates multiplied: by (width, height) from fractions to pixels, by their inverses back."""
        factors = np.array([x, y, 1.0])
        return Skeleton(self.body * factors, self.left_hand * factors, self.right_hand * factors)


def skeleton_of(points: np.ndarray) -> Skeleton:
    """The skeleton of whole-body points [133, 3], in their coordinates."""
    points = np.asarray(points, dtype=np.float64)
    body = points[np.array(_FROM_WHOLE_BODY)].mean(axis=1)
    return Skeleton(body, points[LEFT_HAND].copy(), points[RIGHT_HAND].copy())
