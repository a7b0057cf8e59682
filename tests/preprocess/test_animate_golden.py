"""The pure functions of the animation preprocessing, against stored results of the published code."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from reference import ROOT, case, tensors

from kinograph.preprocess.animate import boxes, frames, heatmaps, masks
from kinograph.preprocess.animate.edit_prompts import edit_prompts
from kinograph.preprocess.animate.keypoints import L_WRIST, R_WRIST, Skeleton
from kinograph.preprocess.animate.retarget import Figure, Retargeting, measure
from kinograph.preprocess.animate.skeleton import draw_skeleton

SCENES = ("full_body", "three_quarter", "half_body", "edited", "edited_half")


def skeleton(data: dict[str, torch.Tensor], prefix: str) -> Skeleton:
    return Skeleton(*(data[f"{prefix}_{part}"].numpy() for part in ("body", "lhand", "rhand")))


def test_sizes_and_frame_choice():
    description = case("animate_pre_resolution")
    for row in description["sizes"]:
        a, b = row["area"]
        size = frames.output_size(row["width"], row["height"], area=a * b, multiple=row["divisor"])
        assert list(size) == row["result_wh"], row
    for row in description["frame_indices"]:
        assert frames.frame_indices(row["frames"], row["video_fps"], row["fps"]) == row["indices"]


def test_resized_pictures():
    description, data = case("animate_pre_resolution"), tensors("animate_pre_resolution")
    for row in description["images"]:
        actual = frames.fit_to_area(data[row["image"]], area=row["area"], multiple=row["divisor"])
        expected = data[row["resized"]]
        assert actual.shape == expected.shape and (actual.int() - expected.int()).abs().max() <= 1


def test_person_boxes():
    description = case("animate_pre_detector")
    height, width = description["config"]["frame_shape"]
    for name, row in description["detections"].items():
        rows = np.array(row["rows"], dtype=np.float32)
        assert list(boxes.largest_person(rows, width=width, height=height)) == row["box"], name
        assert list(boxes.largest_person(by_class(rows), width=width, height=height)) == pytest.approx(row["box"], abs=1), name


def by_class(rows: np.ndarray, num_classes: int = 80) -> np.ndarray:
    """Detections in the other layout, [1, 4 + classes, n]."""
    corners, scores = rows[:, :4], np.zeros((len(rows), num_classes), dtype=np.float32)
    scores[np.arange(len(rows)), rows[:, 5].astype(int)] = rows[:, 4]
    centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    return np.concatenate([centres, sizes, scores], axis=1).T[None]


def test_network_inputs():
    description, data = case("animate_pre_detector"), tensors("animate_pre_detector")
    frame, atol = data["frame_rgb"].numpy(), description["tolerance"]["atol"]
    np.testing.assert_allclose(boxes.detector_input(frame)[0, :, ::16, ::16], data["detector_input_sample"].numpy(), atol=atol)
    for i, row in enumerate(description["crops"]):
        crop = boxes.pose_crop(boxes.Person(*row["box"]), width=frame.shape[1], height=frame.shape[0])
        assert list(crop.centre) == row["center"]
        np.testing.assert_allclose(np.array(crop.extent) / 200, row["scale"], rtol=1e-9)
        np.testing.assert_allclose(boxes.pose_input(frame, crop)[0, :, ::4, ::4], data[f"pose_input_{i}"].numpy(), atol=atol)


def test_heatmaps():
    description, data = case("animate_pre_heatmap"), tensors("animate_pre_heatmap")
    for centre, scale, expected in zip(data["center"], data["scale"], data["keypoints"]):
        actual = heatmaps.keypoints_from_heatmaps(data["heatmaps"].numpy(), tuple(centre.tolist()), tuple((scale * 200).tolist()))
        np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=description["tolerance"]["atol"])


@pytest.mark.parametrize("index", range(3))
def test_skeleton_drawing(index):
    description, data = case("animate_pre_skeleton"), tensors("animate_pre_skeleton")
    canvas = description["canvases"][index]
    width, height = canvas["width"], canvas["height"]
    drawn = draw_skeleton(skeleton(data, f"p{index}").scaled(width, height), width=width, height=height)
    expected = np.array(Image.open(ROOT / "golden" / "animate_pre_skeleton" / canvas["png"]).convert("RGB"))
    assert (drawn != expected).any(axis=-1).mean() <= description["tolerance"]["max_fraction_of_differing_pixels"]


def test_face_boxes():
    description, data = case("animate_pre_face_crop"), tensors("animate_pre_face_crop")
    for row in description["crops"]:
        size = (row["width"], row["height"])
        points = data[row["keypoints"]].numpy()[1:] * size
        x1, y1, x2, y2 = boxes.face_box(points, width=size[0], height=size[1])
        np.testing.assert_allclose([x1, x2, y1, y2], row["x1_x2_y1_y2"], atol=description["tolerance"]["atol_pixels"])


def test_masks():
    description, data = case("animate_pre_mask"), tensors("animate_pre_mask")
    mask = data["mask"].numpy()
    for key, expected in data.items():
        kind, *numbers = key.split("_")
        if kind == "dilated":
            iterations, k = map(int, numbers)
            assert np.array_equal(masks.dilated(mask, iterations=iterations, k=k), expected.numpy()), key
        elif kind == "blocks":
            iterations, k, w_len, h_len = map(int, numbers)
            assert np.array_equal(masks.widened(mask, iterations=iterations, k=k, w_len=w_len, h_len=h_len), expected.numpy()), key
    assert np.array_equal(masks.without_person(data["frame"].numpy(), masks.widened(mask)), data["background"].numpy())
    for num_frames, chunks in description["key_frame_schedule"].items():
        assert masks.tracking_chunks(int(num_frames)) == [(chunk["frames"], chunk["key_frames"]) for chunk in chunks]
    body = np.column_stack([np.array(description["body_xy"]) * description["body_canvas_wh"], np.ones(20)])
    assert masks.prompt_points(body).tolist() == description["prompt_points"]


# ------------------------------------------------------------------------------------------------------ retargeting


def scene(name: str) -> tuple[dict, dict[str, torch.Tensor], Retargeting]:
    """(description, tensors, what was measured by the published rule) of a golden scene."""
    description, data = case("animate_pre_retarget")["scenes"][name], tensors("animate_pre_retarget")
    source_size, reference_size = description["src_size_wh"], description["ref_size_wh"]
    edited = None
    if description["edited"]:
        edited = (Figure(skeleton(data, f"{name}_editsrc"), *source_size), Figure(skeleton(data, f"{name}_editref"), *reference_size))
    source = Figure(skeleton(data, f"{name}_first"), *source_size)
    reference = Figure(skeleton(data, f"{name}_ref"), *reference_size)
    return description, data, measure(source, reference, edited=edited, check=False)


def misplacement(source: Skeleton) -> np.ndarray:
    """By how much the published code moves hands that it exchanges: it puts each where the other's root would go. [2] for the first."""
    right, left = source.right_hand[0], source.left_hand[0]
    nearer = np.linalg.norm(right[:2] - source.body[L_WRIST, :2]) < np.linalg.norm(right[:2] - source.body[R_WRIST, :2])
    return left[:2] - right[:2] if nearer else np.zeros(2)


@pytest.mark.parametrize("name", SCENES)
def test_retargeting(name):
    description, data, retargeting = scene(name)
    tolerance = case("animate_pre_retarget")["tolerance"]
    for i in range(description["frames"]):
        source, expected = skeleton(data, f"{name}_frame{i}"), skeleton(data, f"{name}_out{i}")
        actual = retargeting.apply(source)
        np.testing.assert_allclose(actual.body, expected.body, rtol=0, atol=tolerance["body_atol_pixels"])
        moved = misplacement(source.scaled(*description["src_size_wh"]))
        # The stored hands are named the other way round: its left is the one at the right wrist.
        for hand, stored, shift in ((actual.right_hand, expected.left_hand, moved), (actual.left_hand, expected.right_hand, -moved)):
            # Both are cut down to whole pixels, the stored one after its shift.
            atol = tolerance["hands_atol_pixels"] + 1e-9 + bool(shift.any())
            np.testing.assert_allclose(hand, stored - np.array([*shift, 0]), rtol=0, atol=atol, equal_nan=True)


@pytest.mark.parametrize("name", SCENES)
def test_edit_prompts(name):
    description, data, _ = scene(name)
    driving = [skeleton(data, f"{name}_frame{i}") for i in range(description["frames"])]
    prompts = edit_prompts(driving, tuple(description["src_size_wh"]), tuple(description["ref_size_wh"]))
    assert prompts == [description["edit_prompts"]["driving"], description["edit_prompts"]["reference"]]
