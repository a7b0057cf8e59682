"""What the animation preprocessing does with bad material: people, faces and joints that are missing, hidden or absurd."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from preprocess.acting import standing

from kinograph.errors import RequestError
from kinograph.media.letterbox import coverage, fit_size, letterbox
from kinograph.preprocess.animate import boxes, frames, masks, raster
from kinograph.preprocess.animate.keypoints import L_ELBOW, LIMBS, NECK, R_ELBOW, R_WRIST, Skeleton, skeleton_of
from kinograph.preprocess.animate.retarget import Figure, measure
from kinograph.preprocess.animate.skeleton import draw_skeleton

# ------------------------------------------------------------------------------------------------------- pictures


def test_letterbox_centres_and_keeps_the_aspect():
    white = torch.full((2, 40, 20, 3), 255, dtype=torch.uint8)
    fitted = letterbox(white, 32, 16)
    assert fitted.shape == (2, 16, 32, 3)
    columns = fitted[0, :, :, 0].bool().any(dim=0)
    assert columns.nonzero().flatten().tolist() == list(range(12, 20))
    assert torch.equal(letterbox(white, 20, 40), white)
    assert fit_size(1000, 1, into=(16, 16)) == (16, 1)


def test_averaging_is_the_mean_of_the_covered_area():
    torch.testing.assert_close(coverage(3, 2), torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]))


def test_sizes_and_counts_at_the_edge():
    assert frames.frame_indices(1, 60, 30) == [0]
    assert frames.believable_count(100, 3.3, 30) == 100
    assert frames.believable_count(1000, 3.3, 30) == 99
    with pytest.raises(RequestError, match="4000x3 is too thin for an area of 4096 pixels"):
        frames.output_size(4000, 3, area=4096)


# ---------------------------------------------------------------------------------------------------------- boxes


def test_only_persons_compete_if_asked():
    rows = np.array([[100, 120, 300, 560, 0.6, 0], [104, 118, 302, 566, 0.83, 16], [400, 200, 470, 400, 0.5, 0]], dtype=np.float32)
    assert boxes.largest_person(rows, width=640, height=640, per_class=True)[:4] == (100, 120, 300, 560)
    nobody = boxes.largest_person(rows[:0], width=640, height=480)
    assert nobody == (0, 0, 640, 480, -1)


def test_a_face_outside_the_frame_is_black():
    points = np.column_stack([np.linspace(-90, -50, 68), np.linspace(10, 60, 68)])
    box = boxes.face_box(points, width=100, height=100)
    crop = boxes.crop_face(np.full((100, 100, 3), 200, dtype=np.uint8), box)
    assert crop.shape == (512, 512, 3) and not crop.any()


def test_a_crop_beyond_the_frame_is_black_there():
    frame = np.full((50, 40, 3), 255, dtype=np.uint8)
    picture = boxes.pose_input(frame, boxes.Crop((0.0, 25.0), (40.0, 50.0)))[0, 0]
    assert picture[:, :90].max() < 0 < picture[:, 100:].min()
    apart = boxes.pose_input(frame, boxes.Crop((-500.0, -500.0), (40.0, 50.0)))
    assert np.allclose(apart, apart[:, :, :1, :1])


# ---------------------------------------------------------------------------------------------------------- masks


def test_an_empty_mask_stays_empty():
    empty = np.zeros((20, 30), dtype=np.uint8)
    assert not masks.widened(empty).any()
    single = empty.copy()
    single[5, 5] = 1
    assert masks.filled_blocks(single, w_len=10, h_len=10).sum() == 1


def test_dilation_is_the_repeated_maximum():
    mask = np.random.default_rng(0).random((30, 40)) > 0.97
    expected = mask.copy()
    for _ in range(2):
        padded = np.pad(expected, 2)
        expected = np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).any(axis=(2, 3))
    assert np.array_equal(masks.dilated(mask, iterations=2, k=5), expected)


def test_prompt_points_that_are_not_seen_can_be_left_out():
    body = standing().body.copy()
    body[NECK, 2] = 0.1
    assert len(masks.prompt_points(body)) == 8 and len(masks.prompt_points(body, min_score=0.3)) == 7


# -------------------------------------------------------------------------------------------------------- drawing


def test_shapes_may_leave_the_canvas():
    canvas = np.zeros((40, 50, 3), dtype=np.uint8)
    raster.draw_line(canvas, (-30, -30), (80, 80), 1, (1, 2, 3))
    assert [tuple(canvas[i, i]) for i in (0, 39)] == [(1, 2, 3)] * 2 and canvas[0, 1:].sum() == 0
    for thickness in (1, 2, 3):
        raster.draw_line(canvas, (200, 5), (300, 900), thickness, (9, 9, 9))
    raster.fill_circle(canvas, (-100, 5), 4, (9, 9, 9))
    raster.fill_ellipse(canvas, (500, 500), (30, 4), 20, (9, 9, 9))
    assert canvas.max() == 3


def test_lines_have_their_thickness_and_ellipses_their_axes():
    canvas = np.zeros((40, 60, 3), dtype=np.uint8)
    raster.draw_line(canvas, (10, 20), (50, 20), 1, (255, 0, 0))
    assert (canvas[:, 30, 0] > 0).sum() == 1 and (canvas[20, :, 0] > 0).sum() == 41
    canvas[:] = 0
    raster.fill_ellipse(canvas, (30, 20), (15, 4), 0, (255, 0, 0))
    assert (canvas[20, :, 0] > 0).sum() == 31 and (canvas[:, 30, 0] > 0).sum() == 9


def test_points_that_are_missing_or_doubtful_are_not_drawn():
    shown = standing().scaled(200, 200)
    assert draw_skeleton(shown, width=200, height=200).any()
    nothing = Skeleton(*(part * [1, 1, 0.4] for part in (shown.body, shown.left_hand, shown.right_hand)))
    assert not draw_skeleton(nothing, width=200, height=200).any()
    lost = Skeleton(*(part * [np.nan, np.nan, 1] for part in (shown.body, shown.left_hand, shown.right_hand)))
    assert not draw_skeleton(lost, width=200, height=200).any()


def test_the_neck_is_between_the_shoulders():
    points = np.random.default_rng(0).random((133, 3))
    skeleton = skeleton_of(points)
    np.testing.assert_allclose(skeleton.body[NECK], (points[5] + points[6]) / 2)
    np.testing.assert_array_equal(skeleton.right_hand, points[112:])


# ---------------------------------------------------------------------------------------------------- retargeting


def test_the_same_person_is_left_alone():
    figure = Figure(standing(), 640, 480)
    retargeting = measure(figure, figure)
    assert retargeting.rejected == () and np.allclose(retargeting.ratios, 1)
    actual = retargeting.apply(standing())
    # The reference stands on the middle between ankle and toe, the source on the ankle: the published rule.
    np.testing.assert_allclose(actual.body[:, 0], standing().body[:, 0] * 640, atol=1e-9)
    assert np.ptp(actual.body[:, 1] - standing().body[:, 1] * 480) < 1e-9


def test_proportions_and_size_of_the_reference_are_taken():
    source, reference = Figure(standing(), 640, 480), Figure(standing(arm=1.4), 320, 240)
    body = measure(source, reference).apply(source.skeleton).body
    expected = reference.skeleton.scaled(320, 240).body
    np.testing.assert_allclose(body[:, 0], expected[:, 0], atol=0.5)


@pytest.mark.parametrize("spoil", ["hidden", "absurd"])
def test_a_limb_that_cannot_be_measured_takes_the_other_side(spoil):
    source, reference = Figure(standing(), 640, 480), standing()
    body = reference.body.copy()
    body[R_WRIST] = (0.32, 0.25, 0.1) if spoil == "hidden" else (0.32, 0.95, 0.9)
    wild = Figure(Skeleton(body, reference.left_hand, reference.right_hand), 640, 480)
    retargeting = measure(source, wild)
    assert retargeting.rejected == ("right forearm",)
    assert np.allclose(retargeting.ratios, 1)
    if spoil == "absurd":
        assert measure(source, wild, check=False).ratios.max() > 5


def test_directions_are_kept():
    source, reference = Figure(standing(), 640, 480), Figure(standing(arm=1.3), 480, 640)
    moved = standing()
    moved.body[[R_ELBOW, L_ELBOW], 1] -= 0.07
    before, after = moved.scaled(640, 480).body[:, :2], measure(source, reference).apply(moved).body[:, :2]
    for start, end in LIMBS:
        a, b = before[end] - before[start], after[end] - after[start]
        assert a @ b == pytest.approx(np.linalg.norm(a) * np.linalg.norm(b))


def test_exchanged_hands_are_put_at_their_own_wrists():
    figure = Figure(standing(), 640, 480)
    moved = Skeleton(standing().body, standing().right_hand, standing().left_hand)
    expected, actual = measure(figure, figure).apply(standing()), measure(figure, figure).apply(moved)
    np.testing.assert_array_equal(actual.left_hand, expected.left_hand)
    np.testing.assert_array_equal(actual.right_hand, expected.right_hand)
