"""Driving skeletons given the proportions of the character that is to perform them.

Directions of limbs are kept and lengths changed: each limb is multiplied by the ratio of its lengths in the reference and
in the first driving frame, starting at the neck. The whole is then scaled and moved so that the character stands where it
stands in the reference picture. Ratios are measured once, per limb; a pair of limbs (left and right) shares one.
Hands are scaled as a whole and put at the wrists.

`measure` finds out what has to be done, `Retargeting.apply` does it to a frame. The published rule believes every joint;
with `check`, ratios that rest on joints hardly seen, or that no two people differ by, are replaced and reported, and lengths
may be those that the whole driving video shows. Which limbs of which frames are believed, `retarget_checks.believed` finds
out before. Hands that the pose network took for each other are exchanged and put where they belong; the published code
misplaces them.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kinograph.preprocess.animate.keypoints import (
    L_ANKLE,
    L_EAR,
    L_EYE,
    L_HIP,
    L_SHOULDER,
    L_TOE,
    L_WRIST,
    LARGER_OF_PAIR,
    LIMB_NAMES,
    LIMBS,
    MEAN_OF_PAIR,
    NECK,
    NOSE,
    R_ANKLE,
    R_EAR,
    R_EYE,
    R_HIP,
    R_SHOULDER,
    R_TOE,
    R_WRIST,
    SEEN,
    Skeleton,
)

SURE = 0.5  # score of joints that a figure's height is measured by
MAX_RATIO = 2.0  # of a limb to the same limb of another person, to the ratio of their sizes
FEET = {17: 11, 18: 8}  # foot -> shin, half of whose length a foot may have
FULL, THREE_QUARTER, HALF = 2, 1, 0  # how much of a body a skeleton shows


@dataclass(frozen=True)
class Figure:
    """A person in a picture: the skeleton in fractions of the frame, and the frame's size in pixels."""

    skeleton: Skeleton
    width: int
    height: int


@dataclass(frozen=True)
class Retargeting:
    """What `measure` found; `apply` takes the skeletons of the source, frame by frame."""

    ratios: np.ndarray  # [19], by limb
    scale: float  # height of the person in the source, to that in the reference
    offset: tuple[float, float]  # (x, y) in pixels of the source, subtracted before the division by `scale`
    width: int  # of the source
    height: int
    plain: float = 1.0  # what every limb is multiplied by in the plain scaled pose
    rejected: tuple[str, ...] = ()  # limbs whose ratio was replaced

    def apply(self, skeleton: Skeleton, failed: np.ndarray | None = None) -> Skeleton:
        """In pixels of the reference picture, for a skeleton in fractions of the source's frame.

        `failed` [19] says, for a skeleton that was checked, which limbs are to keep the plain scaled pose. Without it, hands
        are looked at as in the published code.
        """
        source = skeleton.scaled(self.width, self.height)
        body = source.body.copy()
        ratios = self.ratios if failed is None else np.where(failed, self.plain, self.ratios)
        body[:, :2] = (rebuilt(body[:, :2], ratios, limit_feet=True) - np.array(self.offset)) / self.scale
        right, left = self._hands(source, body, exchange=failed is None)
        return Skeleton(body, left, right)

    def _hands(self, source: Skeleton, body: np.ndarray, *, exchange: bool) -> tuple[np.ndarray, np.ndarray]:
        ratio = max(self.ratios[0], self.ratios[1]) / self.scale
        right, left = source.right_hand, source.left_hand
        if exchange and _is_at_other_wrist(right, source.body):
            right, left = left, right
        return tuple(  # type: ignore[return-value]
            _placed(hand, source.body[wrist, :2], body[wrist, :2], ratio) for hand, wrist in ((right, R_WRIST), (left, L_WRIST))
        )


def measure(
    source: Figure,
    reference: Figure,
    *,
    edited: tuple[Figure, Figure] | None = None,
    check: bool = True,
    lengths: np.ndarray | None = None,
) -> Retargeting:
    """How to turn the skeletons of a driving video into those of the reference's proportions.

    `source` is the first driving frame. `edited` are pictures of the same two people (source, reference) in a common pose:
    limbs are then measured there. `check` replaces ratios that cannot be right. With it, `lengths` [19] may tell how long
    the source's limbs are, in pixels of the first frame, as the whole video shows them; NaN for those that it does not show.
    """
    height = height_ratio(source, reference)
    scale = height or _side(source) / _side(reference)
    known = lengths if check and edited is None else None
    measured = edited or (source, reference)
    ratios = limb_ratios(source, reference, scale, known) if edited is None else edited_ratios(source, reference, *edited)
    seen = both_seen(*measured, known)
    plain = float(np.median(ratios[seen])) if check and height is None and seen.any() else 1.0
    rejected = doubtful(ratios, seen, plain) if check else ()
    ratios = symmetric(repaired(ratios, rejected, plain))
    return Retargeting(
        ratios=ratios,
        scale=scale,
        offset=anchor(source, reference, ratios, scale),
        width=source.width,
        height=source.height,
        plain=plain,
        rejected=tuple(LIMB_NAMES[i] for i in rejected),
    )


# -------------------------------------------------------------------------------------------------------- lengths


def height_ratio(source: Figure, reference: Figure) -> float | None:
    """How much taller the person is in the source, in pixels: from the nose to the ankles, or else to the hips."""
    for low in ((R_ANKLE, L_ANKLE), (R_HIP, L_HIP)):
        joints = (NOSE, *low)
        if all((figure.skeleton.body[list(joints), 2] > SURE).all() for figure in (source, reference)):
            heights = [abs(f.skeleton.body[list(low), 1].mean() - f.skeleton.body[NOSE, 1]) * f.height for f in (source, reference)]
            if min(heights) > 0:
                return heights[0] / heights[1]
    return None


def limb_ratios(source: Figure, reference: Figure, scale: float, lengths: np.ndarray | None = None) -> np.ndarray:
    """[19]: length of each limb of the reference, brought to the source's height by `scale`, to the source's.

    `lengths` [19] are the source's, in pixels, where they are known better than from its picture; NaN where not.
    """
    own = limb_lengths(source)
    if lengths is not None:
        own = np.where(np.isnan(lengths), own, np.maximum(lengths, 1e-6))
    return limb_lengths(reference, int(reference.width * scale), int(reference.height * scale)) / own


def edited_ratios(source: Figure, reference: Figure, edited_source: Figure, edited_reference: Figure) -> np.ndarray:
    """As `limb_ratios`, measured in the edited pictures; where those show no height, heads and shoulders tell their scale."""
    scale = height_ratio(edited_source, edited_reference)
    if scale is not None:
        return limb_ratios(edited_source, edited_reference, scale)
    scale = _side(edited_source) / _side(edited_reference)
    enlarged = edit_scale(reference, edited_reference) / edit_scale(source, edited_source)
    return limb_ratios(edited_source, edited_reference, scale) * enlarged


def edit_scale(original: Figure, edited: Figure) -> float:
    """How much larger a person is in the original than after editing, by head width and shoulder distance."""
    return max(_head_width(original) / _head_width(edited), _shoulder_width(original) / _shoulder_width(edited))


def limb_lengths(figure: Figure, width: int | None = None, height: int | None = None) -> np.ndarray:
    """[19] in pixels, of the frame or of one scaled to `width` x `height`; at least a millionth, so that ratios exist."""
    size = np.array([width or figure.width, height or figure.height])
    joints = figure.skeleton.body[:, :2] * size
    starts, ends = np.array(LIMBS).T
    return np.maximum(np.linalg.norm(joints[ends] - joints[starts], axis=1), 1e-6)


def symmetric(ratios: np.ndarray) -> np.ndarray:
    """One ratio for both sides: the larger one for shoulders, limbs and feet, the mean for eyes and ears."""
    result = ratios.copy()
    for pair in LARGER_OF_PAIR:
        result[list(pair)] = ratios[list(pair)].max()
    for pair in MEAN_OF_PAIR:
        result[list(pair)] = ratios[list(pair)].mean()
    return result


def repaired(ratios: np.ndarray, rejected: tuple[int, ...], plain: float = 1.0) -> np.ndarray:
    """`ratios` with those of `rejected` limbs replaced: by the other side's or, if that is rejected as well, by `plain`."""
    twins = {a: b for pair in (*LARGER_OF_PAIR, *MEAN_OF_PAIR) for a, b in (pair, pair[::-1])}
    result = ratios.copy()
    for i in rejected:
        twin = twins.get(i)
        result[i] = plain if twin is None or twin in rejected else ratios[twin]
    return result


def both_seen(source: Figure, reference: Figure, lengths: np.ndarray | None = None) -> np.ndarray:
    """bool [19]: the limbs whose joints are seen in both; for the source, `lengths` decide if there are any."""
    joints = np.array(LIMBS)
    in_source, in_reference = ((figure.skeleton.body[joints, 2] >= SEEN).all(axis=1) for figure in (source, reference))
    result: np.ndarray = (in_source if lengths is None else ~np.isnan(lengths)) & in_reference
    return result


def doubtful(ratios: np.ndarray, seen: np.ndarray, plain: float) -> tuple[int, ...]:
    """The limbs whose ratio rests on a joint that is hardly `seen` [19], or is beyond what people of the same size differ by."""
    ratios = ratios / plain
    return tuple(i for i in range(len(LIMBS)) if not seen[i] or not 1 / MAX_RATIO <= ratios[i] <= MAX_RATIO)


# ------------------------------------------------------------------------------------------------------ placement


def rebuilt(joints: np.ndarray, ratios: np.ndarray, *, limit_feet: bool) -> np.ndarray:
    """`joints` [20, 2] with each limb's length multiplied by its ratio; the neck stays where it is."""
    result = joints.astype(np.float64).copy()
    for i, (start, end) in enumerate(LIMBS):
        limb = (joints[end] - joints[start]) * ratios[i]
        if limit_feet and i in FEET:
            shin_start, shin_end = LIMBS[FEET[i]]
            longest = 0.5 * np.linalg.norm(result[shin_end] - result[shin_start])
            length = np.linalg.norm(limb)
            limb = limb * (longest / length) if length > longest else limb
        result[end] = result[start] + limb
    return result


def anchor(source: Figure, reference: Figure, ratios: np.ndarray, scale: float) -> tuple[float, float]:
    """(x, y) from where the rebuilt first frame stands to where the reference stands: by feet and hips, or else by the neck."""
    size = np.array([int(reference.width * scale), int(reference.height * scale)])
    there = reference.skeleton.body[:, :2] * size
    here = rebuilt(source.skeleton.body[:, :2] * [source.width, source.height], ratios, limit_feet=False)
    if min(body_class(source.skeleton), body_class(reference.skeleton)) < FULL:
        dx, dy = here[NECK] - there[NECK]
        return float(dx), float(dy)
    ground = max(there[[ankle, toe], 1].mean() for ankle, toe in ((R_ANKLE, R_TOE), (L_ANKLE, L_TOE)))
    hips = [R_HIP, L_HIP]
    return float(here[hips, 0].mean() - there[hips, 0].mean()), float(here[[R_ANKLE, L_ANKLE], 1].max() - ground)


def body_class(skeleton: Skeleton) -> int:
    """FULL if both ankles and hips are in the frame and seen, THREE_QUARTER if both hips are, else HALF."""

    def within(*joints: int) -> bool:
        rows = skeleton.body[list(joints)]
        return bool(((rows[:, 1] <= 1) & (rows[:, 2] >= SEEN)).all())

    if not within(R_HIP, L_HIP):
        return HALF
    return FULL if within(R_ANKLE, L_ANKLE) else THREE_QUARTER


def _is_at_other_wrist(right_hand: np.ndarray, body: np.ndarray) -> bool:
    x, y, score = right_hand[0]
    if score < SEEN:
        return False
    return bool(math.dist((x, y), body[L_WRIST, :2]) < math.dist((x, y), body[R_WRIST, :2]))


def _placed(hand: np.ndarray, wrist: np.ndarray, new_wrist: np.ndarray, ratio: float) -> np.ndarray:
    """A hand [21, 3] scaled around its root, moved with its root or, if that is hardly seen, with the wrist.

    In whole pixels; points hardly seen become NaN with a score of 0.
    """
    root = hand[0, :2]
    seen = hand[:, 2] >= SEEN
    moved = root + ratio * (hand[:, :2] - root) + new_wrist - (root if seen[0] else wrist)
    result = np.concatenate([np.trunc(moved), hand[:, 2:]], axis=1)
    result[~seen] = (np.nan, np.nan, 0)
    return result


def _side(figure: Figure) -> float:
    return math.sqrt(figure.width * figure.height)


def _head_width(figure: Figure) -> float:
    x = figure.skeleton.body[[NOSE, R_EYE, L_EYE, R_EAR, L_EAR], 0]
    return max(float(x.max() - x.min()), 1e-6)


def _shoulder_width(figure: Figure) -> float:
    joints = figure.skeleton.body[[R_SHOULDER, L_SHOULDER], :2] * [figure.width, figure.height]
    return max(float(np.linalg.norm(joints[1] - joints[0])), 1e-6)
