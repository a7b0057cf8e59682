"""Driving skeletons with the faults that finders of people have, and what becomes of them."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from preprocess.acting import standing

from kinograph.preprocess.animate.keypoints import (
    L_ANKLE,
    L_ELBOW,
    L_HIP,
    L_KNEE,
    L_SHOULDER,
    L_TOE,
    L_WRIST,
    LIMB_NAMES,
    LIMBS,
    NECK,
    NOSE,
    R_ANKLE,
    R_ELBOW,
    R_HIP,
    R_KNEE,
    R_SHOULDER,
    R_TOE,
    R_WRIST,
    Skeleton,
)
from kinograph.preprocess.animate.retarget import Figure, measure
from kinograph.preprocess.animate.retarget_checks import Believed, believed, person_sizes

SIZE = (640, 480)
LEFT_FOREARM, RIGHT_FOREARM = LIMB_NAMES.index("left forearm"), LIMB_NAMES.index("right forearm")
Spoil = Callable[[Skeleton], None]


def waving(count: int, *, degrees: float = 8.0) -> list[Skeleton]:
    """A person who turns the left forearm, by some degrees a frame; hands at the wrists."""
    result = []
    for i in range(count):
        skeleton = standing().scaled(*SIZE)
        turn_forearm(skeleton, degrees * i)
        result.append(skeleton.scaled(1 / SIZE[0], 1 / SIZE[1]))
    return result


def turn_forearm(pixels: Skeleton, degrees: float) -> None:
    angle, elbow, wrist = np.radians(degrees), pixels.body[L_ELBOW, :2], pixels.body[L_WRIST, :2].copy()
    forearm = wrist - elbow
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    pixels.body[L_WRIST, :2] = elbow + turn @ forearm
    pixels.left_hand[:, :2] += pixels.body[L_WRIST, :2] - wrist


def spoilt(frames: list[Skeleton], at: range | list[int], spoil: Spoil) -> list[Skeleton]:
    """The frames, with `spoil` done to copies of those at `at`, in pixels."""
    result = list(frames)
    for i in at:
        pixels = frames[i].scaled(*SIZE)
        spoil(pixels)
        result[i] = pixels.scaled(1 / SIZE[0], 1 / SIZE[1])
    return result


def check(frames: list[Skeleton], fps: float = 30) -> Believed:
    return believed(frames, *SIZE, fps=fps)


def bodies(frames: list[Skeleton] | tuple[Skeleton, ...]) -> np.ndarray:
    """[n, 20, 2] in pixels."""
    return np.stack([frame.scaled(*SIZE).body[:, :2] for frame in frames])


def swap(pairs: list[tuple[int, int]]) -> Spoil:
    def spoil(pixels: Skeleton) -> None:
        for a, b in pairs:
            pixels.body[[a, b]] = pixels.body[[b, a]]

    return spoil


ARMS = [(R_SHOULDER, L_SHOULDER), (R_ELBOW, L_ELBOW), (R_WRIST, L_WRIST)]
LEGS = [(R_HIP, L_HIP), (R_KNEE, L_KNEE), (R_ANKLE, L_ANKLE), (R_TOE, L_TOE)]

# --------------------------------------------------------------------------------------------- what is left alone


def test_what_is_believable_is_left_alone():
    frames = waving(20)
    result = check(frames)
    assert not result.failed.any() and (result.limbs, result.hands, result.exchanged) == ({}, {}, {})
    for before, after in zip(frames, result.skeletons):
        for part in ("body", "left_hand", "right_hand"):
            np.testing.assert_allclose(getattr(after, part), getattr(before, part), rtol=1e-12)
    source, reference = Figure(frames[0], *SIZE), Figure(standing(arm=1.3), *SIZE)
    np.testing.assert_allclose(measure(source, reference, lengths=result.lengths).ratios, measure(source, reference).ratios)


def test_a_person_who_comes_nearer_is_believed():
    growth = 0.4 * 1.03 ** np.arange(30)
    frames = [Skeleton(*(part * (by, by, 1) for part in (f.body, f.left_hand, f.right_hand))) for by, f in zip(growth, waving(30))]
    result = check(frames)
    assert not result.failed.any() and not result.hands
    sizes = person_sizes(np.stack([frame.scaled(*SIZE).body for frame in frames]))
    assert sizes[29] / sizes[0] == pytest.approx(growth[29] / growth[0], rel=0.07)


def test_the_size_does_not_depend_on_which_parts_are_in_the_frame():
    near = np.stack([standing().scaled(*SIZE).body for _ in range(30)])
    near[:, NOSE, 1] -= 40  # a long neck for these shoulders
    whole = person_sizes(near)
    near[15:, [R_HIP, L_HIP], 2] = 0
    np.testing.assert_allclose(person_sizes(near) / person_sizes(near)[0], whole / whole[0], rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_frames(count):
    assert not check(waving(count)).failed.any()


def test_a_person_of_whom_nothing_is_seen():
    unseen = Skeleton(np.zeros((20, 3)), np.zeros((21, 3)), np.zeros((21, 3)))
    result = check([unseen] * 4)
    assert result.limbs == {} and np.isnan(result.lengths).all()
    assert not np.isnan(measure(Figure(unseen, *SIZE), Figure(standing(), *SIZE), lengths=result.lengths).ratios).any()


# ------------------------------------------------------------------------------------------------ stretched, flipped


def throw_wrist(pixels: Skeleton) -> None:
    pixels.body[L_WRIST, :2] = (20, 470)


def test_a_forearm_stretched_in_one_frame_lies_between_its_neighbours():
    frames = waving(20)
    result = check(spoilt(frames, [9], throw_wrist))
    assert result.limbs == {"left forearm": 1}
    assert np.argwhere(result.failed).tolist() == [[9, LEFT_FOREARM]]
    np.testing.assert_allclose(bodies(result.skeletons), bodies(frames), atol=2)  # a chord of 16 degrees is hardly shorter


def test_a_failed_limb_keeps_the_plain_scaled_pose():
    frames = waving(20)
    result = check(spoilt(frames, [9], throw_wrist))
    reference = standing()
    reference.body[[L_WRIST, R_WRIST], 0] = (0.74, 0.26)  # shorter forearms than the source's
    rule = measure(Figure(frames[0], *SIZE), Figure(reference, *SIZE), lengths=result.lengths)
    assert rule.ratios[LEFT_FOREARM] == pytest.approx(0.6, abs=0.01) and rule.plain == 1
    lengths = [np.linalg.norm(np.subtract(*rule.apply(s, f).body[[L_WRIST, L_ELBOW], :2])) for s, f in zip(result.skeletons, result.failed)]
    whole = np.linalg.norm(np.subtract(*bodies(frames)[0, [L_WRIST, L_ELBOW]]))
    assert lengths[9] == pytest.approx(whole, rel=0.02)
    np.testing.assert_allclose(np.delete(lengths, 9), 0.6 * whole, rtol=0.01)
    own = [rule.apply(s, f).body[[R_ELBOW, R_WRIST], :2] for s, f in zip(result.skeletons, result.failed)]
    np.testing.assert_allclose(own, np.broadcast_to(own[0], (20, 2, 2)), atol=1e-6)  # the other arm knows nothing of it


def test_a_stretched_forearm_without_neighbours_is_cut_down():
    result = check(spoilt(waving(1), [0], throw_wrist))
    elbow, wrist = bodies(result.skeletons)[0, [L_ELBOW, L_WRIST]]
    thrown = np.array([20, 470]) - elbow
    assert result.limbs == {"left forearm": 1} and np.linalg.norm(wrist - elbow) < np.linalg.norm(thrown) / 2
    assert (wrist - elbow) @ thrown == pytest.approx(np.linalg.norm(wrist - elbow) * np.linalg.norm(thrown))


def test_a_thrown_elbow_takes_no_wrist_along():
    def throw(pixels: Skeleton) -> None:
        pixels.body[L_ELBOW, :2] = (600, 460)

    frames = waving(20)
    result = check(spoilt(frames, [9], throw))
    assert result.limbs == {"left upper arm": 1, "left forearm": 1}
    np.testing.assert_allclose(bodies(result.skeletons), bodies(frames), atol=2)


def test_limbs_stay_joined():
    def throw(pixels: Skeleton) -> None:
        pixels.body[[L_ELBOW, L_WRIST], :2] += (0, 300)  # the arm of somebody else: its forearm is a good one

    frames = waving(20)
    result = check(spoilt(frames, [9], throw))
    assert result.limbs == {"left upper arm": 1}
    np.testing.assert_allclose(bodies(result.skeletons), bodies(frames), atol=1e-6)


FLIPS = [(1, 30, True), (2, 30, True), (5, 30, False), (2, 15, False), (1, 8, False), (4, 60, True)]


@pytest.mark.parametrize("length, fps, mended", FLIPS)
def test_a_forearm_that_is_flipped_for_a_moment(length, fps, mended):
    frames = waving(20, degrees=3)
    result = check(spoilt(frames, range(9, 9 + length), lambda pixels: turn_forearm(pixels, 180)), fps)
    if mended:
        assert result.limbs == {"left forearm": length}
        np.testing.assert_allclose(bodies(result.skeletons), bodies(frames), atol=2)
    else:
        assert result.limbs == {}  # who points elsewhere for so long means it


# --------------------------------------------------------------------------------------------------- left and right


@pytest.mark.parametrize("name, pairs", [("arms", ARMS), ("legs", LEGS)])
def test_exchanged_sides_are_put_back(name, pairs):
    frames = waving(20)
    result = check(spoilt(frames, range(7, 11), swap(pairs)))
    assert result.exchanged == {name: 4} and result.limbs == {}
    np.testing.assert_allclose(bodies(result.skeletons), bodies(frames), atol=1e-6)


def test_sides_that_change_for_good_are_left_alone():
    frames = spoilt(waving(20), range(7, 20), swap(ARMS))
    assert check(frames).exchanged == {}
    np.testing.assert_allclose(bodies(check(frames).skeletons), bodies(frames), atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ hands


def hands(result: Believed, frame: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = result.skeletons[frame].scaled(*SIZE)
    return pixels.left_hand, pixels.right_hand


def test_exchanged_hands_change_sides():
    frames = waving(6)
    wrong = [Skeleton(f.body, f.right_hand, f.left_hand) if i == 3 else f for i, f in enumerate(frames)]
    result = check(wrong)
    assert result.hands == {}
    np.testing.assert_allclose(hands(result, 3)[0], frames[3].scaled(*SIZE).left_hand)
    np.testing.assert_allclose(hands(result, 3)[1], frames[3].scaled(*SIZE).right_hand)


def test_a_lone_hand_at_the_other_wrist_changes_sides():
    frames = waving(6)
    lone = [Skeleton(f.body, f.right_hand, f.left_hand * 0) for f in frames]
    result = check(lone)
    assert result.hands == {} and (hands(result, 2)[0][:, 2] == 0).all()
    np.testing.assert_allclose(hands(result, 2)[1], frames[2].scaled(*SIZE).right_hand)


def test_a_hand_far_from_its_wrist_is_left_out():
    def throw(pixels: Skeleton) -> None:
        pixels.left_hand[:, 1] += 120

    frames = spoilt(waving(20), [4, 5, 6], throw)
    result = check(frames)
    assert result.hands == {"left hand": 3} and result.limbs == {}
    figure = Figure(standing(), *SIZE)
    placed = [measure(figure, figure).apply(s, f).left_hand for s, f in zip(result.skeletons, result.failed)]
    assert np.isnan(placed[5][:, :2]).all() and (placed[5][:, 2] == 0).all() and np.isfinite(placed[7]).all()


def test_one_hand_found_twice_is_one_hand():
    frames = [Skeleton(f.body, f.left_hand, f.left_hand) for f in waving(5)]
    result = check(frames)
    assert result.hands == {"right hand": 5} and (hands(result, 0)[0][:, 2] == 1).all()


# ---------------------------------------------------------------------------------------------------- unseen joints


def test_an_elbow_that_is_nowhere_does_not_move_the_hand():
    def hide(pixels: Skeleton) -> None:
        pixels.body[L_ELBOW] = 0

    frames = spoilt(waving(20, degrees=0), range(20), hide)
    result = check(frames)
    assert result.limbs == {"left forearm": 20}  # the upper arm's end is not seen: nothing of it shows
    reference = Figure(standing(arm=1.4), *SIZE)
    rule = measure(Figure(result.skeletons[0], *SIZE), reference, lengths=result.lengths)
    body = rule.apply(result.skeletons[5], result.failed[5]).body
    expected = (bodies(frames)[5, L_WRIST] - bodies(frames)[5, L_SHOULDER]) * rule.plain / rule.scale
    np.testing.assert_allclose(body[L_WRIST, :2] - body[L_SHOULDER, :2], expected, atol=1e-6)


def test_a_limb_that_is_not_shown_is_not_told_of():
    def hide(pixels: Skeleton) -> None:
        pixels.body[L_WRIST] = (0, 0, 0.1)

    assert check(spoilt(waving(20), range(5, 9), hide)).limbs == {}


# -------------------------------------------------------------------------------------------------------- lengths


def shorten_forearms(pixels: Skeleton) -> None:
    for elbow, wrist in ((L_ELBOW, L_WRIST), (R_ELBOW, R_WRIST)):
        pixels.body[wrist, :2] = pixels.body[elbow, :2] + 0.55 * (pixels.body[wrist, :2] - pixels.body[elbow, :2])


def test_forearms_that_point_at_the_camera_in_the_first_frame_are_not_taken_for_short():
    frames = spoilt(waving(20), [0, 1], shorten_forearms)
    result = check(frames)
    source, reference = Figure(frames[0], *SIZE), Figure(standing(), *SIZE)
    assert measure(source, reference).ratios[LEFT_FOREARM] == pytest.approx(1 / 0.55, rel=0.01)  # and so in all frames
    np.testing.assert_allclose(measure(source, reference, lengths=result.lengths).ratios, 1, rtol=0.02)


def test_limbs_are_not_doubted_for_the_size_of_the_picture():
    near, far = standing(), standing()
    for skeleton in (near, far):
        skeleton.body[[R_HIP, L_HIP, R_ANKLE, L_ANKLE], 2] = 0  # nothing tells heights
    far.body[:, :2] = 0.5 + (far.body[:, :2] - 0.5) * 0.3
    rule = measure(Figure(near, *SIZE), Figure(far, *SIZE))
    assert not {"left forearm", "neck", "left shoulder"} & set(rule.rejected)
    np.testing.assert_allclose(rule.ratios, 0.3)  # hidden ones have the size of the others


def test_directions_and_joints_are_those_of_the_limbs():
    assert [LIMBS[i] for i in (LEFT_FOREARM, RIGHT_FOREARM)] == [(L_ELBOW, L_WRIST), (R_ELBOW, R_WRIST)]
    assert LIMBS[0][0] == NECK
