"""Driving skeletons made believable, before they are given another person's proportions.

What finds people errs for a few frames at a time: left and right are exchanged, a wrist is thrown across the picture, a hand
is found far from its arm. `believed` goes through the skeletons of a video and leaves believable ones as they are.

Limbs point towards the camera and away from it, so that a limb is often seen shorter than it is, but hardly ever longer. How
long a person's limbs are is therefore taken from the frames that show them long, and told in units of the person's size in
the frame, which changes as people come nearer and cameras zoom.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kinograph.preprocess.animate.keypoints import (
    L_ANKLE,
    L_ELBOW,
    L_HIP,
    L_KNEE,
    L_SHOULDER,
    L_TOE,
    L_WRIST,
    LARGER_OF_PAIR,
    LIMB_NAMES,
    LIMBS,
    MEAN_OF_PAIR,
    R_ANKLE,
    R_ELBOW,
    R_HIP,
    R_KNEE,
    R_SHOULDER,
    R_TOE,
    R_WRIST,
    SEEN,
    Skeleton,
)

STRETCHED = 1.5  # length of a limb that is not believed, to its usual one; perspective made up to 1.2 in the clips tried
LONG = 75  # percentile of a limb's lengths that is its usual one
HEAD_LIMBS = (12, 13, 14, 15, 16)  # these turn: one side is long when the other is short, and the median is the usual length
TURNED = 0.0  # cosine between a flipped limb and the same limb before and after
STEADY = 0.5  # cosine between those two
FLIP_SECONDS = 0.07  # a limb that points elsewhere for longer has moved; two frames of 30 a second
NEAR = 8  # frames that an exchange may last, and that lie between a limb and those that stand in for it
HAND_REACH = 0.5  # from the wrist to the hand's root, to the usual forearm; at seen wrists it was up to 0.33 in the clips tried

# Lengths that any person's limbs may have, in shoulder widths: what is not longer is never called stretched.
_ANYONES = np.array([0.5, 0.5, 0.72, 0.56, 0.72, 0.56, 1.3, 0.95, 0.95, 1.3, 0.95, 0.95, 0.65, 0.25, 0.25, 0.25, 0.25, 0.4, 0.4])
_TRUNK = (0, 12, 6, 9)  # what a person's size is seen by
_SIDES = {
    "arms": ((R_SHOULDER, L_SHOULDER), (R_ELBOW, L_ELBOW), (R_WRIST, L_WRIST)),
    "legs": ((R_HIP, L_HIP), (R_KNEE, L_KNEE), (R_ANKLE, L_ANKLE), (R_TOE, L_TOE)),
}
_MIDDLES = ((R_ELBOW, 2, 3), (L_ELBOW, 4, 5), (R_KNEE, 7, 8), (L_KNEE, 10, 11))  # joint, the limbs to it and from it
_LEVERS = tuple(limb for _, *limbs in _MIDDLES for limb in limbs)
_FEET = (17, 18)
_HANDS = (("right hand", R_WRIST, 3), ("left hand", L_WRIST, 5))  # name, wrist, forearm
_STARTS, _ENDS = np.array(LIMBS).T


@dataclass(frozen=True, eq=False)
class Believed:
    """The skeletons of a driving video, in fractions of its frame, and what was changed to believe them."""

    skeletons: tuple[Skeleton, ...]
    failed: np.ndarray  # bool [n, 19]: limbs that were not believed, and are to keep the plain scaled pose
    lengths: np.ndarray  # [19]: of the limbs, in pixels of the first frame; NaN for those that are never seen
    limbs: dict[str, int]  # frames in which a limb failed that shows
    hands: dict[str, int]  # frames in which a hand was left out
    exchanged: dict[str, int]  # frames in which left and right were put back: arms, legs


def believed(skeletons: Sequence[Skeleton], width: int, height: int, fps: float) -> Believed:
    """What can be believed of the skeletons (in fractions of `width` x `height` pixels) of one person, `fps` a second.

    - Left and right arms or legs that are exchanged for up to `NEAR` frames are put back.
    - A limb fails that is stretched, or flipped for up to `FLIP_SECONDS`, or leads to or from an unseen joint that
      cannot be where it is said to be. It takes the direction and length of its neighbours in time, if both are near, and is
      cut down to its usual length if not. What hangs on it stays where it is or, where that would stretch it, moves along.
    - A hand that is at neither wrist of its arm is left out; one that is at the other wrist, alone, changes sides.
    """
    pixels = [skeleton.scaled(width, height) for skeleton in skeletons]
    bodies = np.stack([skeleton.body for skeleton in pixels])
    sizes = person_sizes(bodies)
    exchanged = {name: exchanges(bodies, sizes, pairs) for name, pairs in _SIDES.items()}
    bodies = put_back(bodies, exchanged)
    usual = usual_lengths(bodies, sizes)
    longest = np.fmax(usual, _ANYONES) * sizes[:, None]
    bodies, bridged = bridge(bodies, longest)
    wrong = stretched(bodies, longest) | flipped(bodies, longest, int(FLIP_SECONDS * fps))
    bodies = mended(bodies, wrong, longest)
    failed = wrong | bridged
    hands = [placed_hands(skeleton, body, reach) for skeleton, body, reach in zip(pixels, bodies, HAND_REACH * longest)]
    shown = failed & (bodies[:, _ENDS, 2] >= SEEN)
    return Believed(
        skeletons=tuple(Skeleton(body, left, right).scaled(1 / width, 1 / height) for body, (left, right, _) in zip(bodies, hands)),
        failed=failed,
        lengths=known_lengths(bodies[0], usual * sizes[0]),
        limbs={LIMB_NAMES[i]: int(shown[:, i].sum()) for i in np.flatnonzero(shown.any(axis=0))},
        hands={name: count for name, *_ in _HANDS if (count := sum(name in lost for _, _, lost in hands))},
        exchanged={name: int(frames.sum()) for name, frames in exchanged.items() if frames.any()},
    )


# ------------------------------------------------------------------------------------------------------------ lengths


def limb_vectors(bodies: np.ndarray) -> np.ndarray:
    """[..., 19, 2]: from start to end, for bodies [..., 20, 3]."""
    return bodies[..., _ENDS, :2] - bodies[..., _STARTS, :2]


def person_sizes(bodies: np.ndarray) -> np.ndarray:
    """[n]: how wide the person's shoulders are in each frame, or would be if they faced the camera; above 0.

    Shoulders, neck and sides tell, each by the share that it has in this person: a part alone may leave the frame. Of the
    parts that are seen the one that looks largest counts, as others may be foreshortened; and of five frames the median.
    """
    lengths = np.maximum(np.linalg.norm(limb_vectors(bodies)[:, _TRUNK], axis=2), 1e-6)
    seen = _are_seen(bodies)[:, _TRUNK]
    if not seen.any():
        return (lengths / _ANYONES[list(_TRUNK)]).max(axis=1)
    sizes = np.where(seen, lengths / _own_shares(lengths, seen), 0).max(axis=1)
    known = np.flatnonzero(sizes)
    sizes = np.interp(np.arange(len(bodies)), known, sizes[known])
    return np.median(np.lib.stride_tricks.sliding_window_view(np.pad(sizes, 2, mode="reflect" if len(sizes) > 2 else "edge"), 5), axis=1)


def _own_shares(lengths: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """[4]: lengths of the parts of the trunk in shoulder widths, for their `lengths` in pixels and where they are `seen` [n, 4].

    Logarithms of lengths are a frame's plus a part's, which alternating medians tell apart. Shares are anyone's on the whole.
    """
    anyones = np.log(_ANYONES[list(_TRUNK)])
    frames, parts = seen.any(axis=1), seen.any(axis=0)
    logs, shares = np.where(seen, np.log(lengths), np.nan)[frames][:, parts], anyones[parts]
    for _ in range(20):
        sizes = np.nanmedian(logs - shares, axis=1, keepdims=True)
        shares = np.nanmedian(logs - sizes, axis=0)
    result = anyones.copy()
    result[parts] = shares + (anyones[parts] - shares).mean()
    return np.exp(result)


def usual_lengths(bodies: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """[19] in shoulder widths, one length for both sides; NaN for limbs that no frame shows."""
    seen = _are_seen(bodies)
    lengths = np.linalg.norm(limb_vectors(bodies), axis=2) / sizes[:, None]
    result = np.full(len(LIMBS), np.nan)
    for group in (*LARGER_OF_PAIR, *MEAN_OF_PAIR, (12,)):
        known = np.concatenate([lengths[seen[:, i], i] for i in group])
        if len(known):
            known = known[known <= STRETCHED * max(np.percentile(known, 50, method="lower"), _ANYONES[group[0]])]
            length = np.median(known) if group[0] in HEAD_LIMBS else np.percentile(known, LONG, method="higher")
            result[list(group)] = length
    return result


def known_lengths(first: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """[19] in pixels of the first frame, for its body [20, 3] and the `usual` lengths [19] at its scale.

    Arms and legs, which are foreshortened most, are as long as usual. Of the trunk and head, which seldom are, the first frame
    tells more: it may show them as turned as the reference picture does.
    """
    from_video = np.isin(np.arange(len(LIMBS)), (*_LEVERS, *_FEET)) | ~_are_seen(first)
    return np.where(from_video, usual, np.linalg.norm(limb_vectors(first), axis=1))


# ----------------------------------------------------------------------------------------------------- what is wrong


def exchanges(bodies: np.ndarray, sizes: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """bool [n]: frames in which the joints of `pairs` (right, left) are exchanged, between two sudden changes of sides."""
    right, left = np.array(pairs).T
    points, seen = bodies[..., :2], bodies[..., 2] >= SEEN
    both = (seen[1:, right] & seen[1:, left] & seen[:-1, right] & seen[:-1, left]).astype(np.float64)

    def way(now: np.ndarray, before: np.ndarray) -> np.ndarray:
        return (np.linalg.norm(points[1:, now] - points[:-1, before], axis=2) * both).sum(axis=1)

    kept, crossed = way(right, right) + way(left, left), way(right, left) + way(left, right)
    changes = 1 + np.flatnonzero((crossed < kept / 2) & (kept - crossed > sizes[1:] / 2))
    result, start = np.zeros(len(bodies), dtype=bool), None
    for frame in changes.tolist():
        if start is not None and frame - start <= NEAR:
            result[start:frame] = True
            start = None
        else:
            start = frame
    return result


def put_back(bodies: np.ndarray, exchanged: dict[str, np.ndarray]) -> np.ndarray:
    result = bodies.copy()
    for name, frames in exchanged.items():
        right, left = np.array(_SIDES[name]).T
        at = np.flatnonzero(frames)[:, None]
        result[at, right], result[at, left] = bodies[at, left], bodies[at, right]
    return result


def bridge(bodies: np.ndarray, longest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bodies, bool [n, 19]: limbs concerned): unseen elbows and knees that stretch a limb, put halfway between its far ends."""
    result, concerned = bodies.copy(), np.zeros((len(bodies), len(LIMBS)), dtype=bool)
    too_long, seen = stretched(bodies, longest), bodies[..., 2] >= SEEN
    for joint, to, onward in _MIDDLES:
        start, end = LIMBS[to][0], LIMBS[onward][1]
        at = ~seen[:, joint] & seen[:, start] & seen[:, end] & (too_long[:, to] | too_long[:, onward])
        result[at, joint, :2] = (bodies[at, start, :2] + bodies[at, end, :2]) / 2
        concerned[np.ix_(at, (to, onward))] = True
    return result, concerned


def stretched(bodies: np.ndarray, longest: np.ndarray) -> np.ndarray:
    """bool [n, 19], for the `longest` [n, 19] that limbs usually are, in pixels."""
    return np.linalg.norm(limb_vectors(bodies), axis=2) > STRETCHED * longest


def flipped(bodies: np.ndarray, longest: np.ndarray, frames: int) -> np.ndarray:
    """bool [n, 19]: seen limbs of arms and legs that turn by more than a right angle, and back after up to `frames` frames.

    Only where they look at least half as long as they are: the direction of a limb that points at the camera means nothing.
    """
    vectors = limb_vectors(bodies)
    lengths = np.linalg.norm(vectors, axis=2)
    plain = _are_seen(bodies) & (lengths > longest / 2) & np.isin(np.arange(len(LIMBS)), _LEVERS)
    result = np.zeros(plain.shape, dtype=bool)
    for before, after in ((i, length + 1 - i) for length in range(1, frames + 1) for i in range(1, length + 1)):
        there = np.arange(before, len(bodies) - after)
        a, b = there - before, there + after

        def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return (vectors[first] * vectors[second]).sum(axis=2) / np.maximum(lengths[first] * lengths[second], 1e-12)

        turned = (cosines(there, a) < TURNED) & (cosines(there, b) < TURNED) & (cosines(a, b) > STEADY)
        result[there] |= turned & plain[there] & plain[a] & plain[b]
    return result


# ------------------------------------------------------------------------------------------------------- what is done


def mended(bodies: np.ndarray, wrong: np.ndarray, longest: np.ndarray) -> np.ndarray:
    """Bodies [n, 20, 3] without the limbs that are `wrong` [n, 19]; frames that have none are left alone."""
    vectors, result = limb_vectors(bodies), bodies.copy()
    for frame in np.flatnonzero(wrong.any(axis=1)).tolist():
        joints = result[frame, :, :2]
        for i, (start, end) in enumerate(LIMBS):
            if wrong[frame, i]:
                joints[end] = joints[start] + _stand_in(vectors[:, i], ~wrong[:, i], frame, longest[frame, i])
            elif np.linalg.norm(joints[end] - joints[start]) > max(STRETCHED * longest[frame, i], np.linalg.norm(vectors[frame, i])):
                joints[end] = joints[start] + vectors[frame, i]
    return result


def _stand_in(vectors: np.ndarray, right: np.ndarray, frame: int, longest: float) -> np.ndarray:
    """[2]: between the nearest frames where the limb [n, 2] is `right` [n], or the frame's own, cut down."""
    there = np.flatnonzero(right)
    after = int(np.searchsorted(there, frame))
    if 0 < after < len(there) and frame - there[after - 1] <= NEAR and there[after] - frame <= NEAR:
        a, b = there[after - 1], there[after]
        share = (frame - a) / (b - a)
        between: np.ndarray = vectors[a] * (1 - share) + vectors[b] * share
        return between
    own = vectors[frame]
    return own * min(1.0, longest / max(float(np.linalg.norm(own)), 1e-6))


def placed_hands(skeleton: Skeleton, body: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(left hand, right hand, names of those left out), for the believed `body` and how far hands may be by forearm [19]."""
    right, left = skeleton.right_hand, skeleton.left_hand
    if _better_exchanged(right[0], left[0], body):
        right, left = left, right
    hands, lost = [], []
    for hand, (name, wrist, forearm) in zip((right, left), _HANDS):
        if hand[0, 2] >= SEEN and np.linalg.norm(hand[0, :2] - body[wrist, :2]) > reach[forearm]:
            hand = hand * (1, 1, 0)
            lost.append(name)
        hands.append(hand)
    return hands[1], hands[0], tuple(lost)


def _better_exchanged(right: np.ndarray, left: np.ndarray, body: np.ndarray) -> bool:
    """Whether the roots of the hands that are seen, taken together, are nearer to the wrists of the other side."""
    own = crossed = 0.0
    for root, wrist, other in ((right, R_WRIST, L_WRIST), (left, L_WRIST, R_WRIST)):
        if root[2] >= SEEN:
            own += float(np.linalg.norm(root[:2] - body[wrist, :2]))
            crossed += float(np.linalg.norm(root[:2] - body[other, :2]))
    return crossed < own


def _are_seen(bodies: np.ndarray) -> np.ndarray:
    """bool [n, 19]: limbs both of whose joints are seen."""
    seen = bodies[..., 2] >= SEEN
    return seen[..., _STARTS] & seen[..., _ENDS]
