"""The models that find people: what is made of their results, and that they are called as they want to be."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kinograph.errors import CheckpointError
from kinograph.preprocess.animate import mediapipe_models as mp
from kinograph.preprocess.animate.boxes import Person
from kinograph.preprocess.animate.keypoints import FACE, L_WRIST, LEFT_HAND, R_TOE, R_WRIST, RIGHT_HAND, skeleton_of
from kinograph.preprocess.animate.onnx_models import DETECTOR, POSE_NETWORK, PublishedFinder
from kinograph.preprocess.animate.tracking import boxes_between, filled, followed, nearest_present, smoothed, tracks_of

# ------------------------------------------------------------------------------------------------------- mediapipe


def test_landmarks_become_whole_body_points():
    rng = np.random.default_rng(0)
    body, face, left, right = (rng.random((n, 3)) for n in (33, 468, 21, 21))
    points = mp.whole_body(body, face, left, right)
    skeleton = skeleton_of(points)
    np.testing.assert_array_equal(skeleton.body[L_WRIST], body[15])
    np.testing.assert_array_equal(skeleton.body[R_WRIST], body[16])
    np.testing.assert_array_equal(skeleton.body[R_TOE], body[32])
    np.testing.assert_array_equal(points[LEFT_HAND, :2], left[:, :2])
    np.testing.assert_array_equal(points[RIGHT_HAND, :2], right[:, :2])
    assert (points[91:, 2] == 1).all() and (points[FACE, 2] == 1).all()
    nothing = mp.whole_body(None, None, None, None)
    assert nothing.shape == (133, 3) and not nothing.any()
    assert not mp.whole_body(body, None, None, right)[LEFT_HAND].any()


def test_face_vertices_are_distinct_and_in_the_mesh():
    assert len(set(mp.FACE_VERTICES)) == 68 and max(mp.FACE_VERTICES) < 468


def test_regions_keep_still_while_they_fit():
    region = mp.region_around(np.array([100.0, 50, 200, 250]), 400, 300)
    assert region == (80, 10, 220, 290)
    assert mp.still_fits(region, np.array([90.0, 60, 210, 280]))
    assert not mp.still_fits(region, np.array([60.0, 60, 190, 240]))  # the person leaves it
    assert not mp.still_fits((0, 0, 400, 300), np.array([100.0, 50, 150, 100]))  # far too large
    assert mp.region_around(np.array([398.0, 299, 500, 400]), 400, 300)[2:] == (400, 300)


def test_a_photo_of_a_person():
    pytest.importorskip("mediapipe", reason="the extra animate is not installed")
    photo = pytest.importorskip("skimage.data", reason="a photo comes with scikit-image").astronaut()
    finder = mp.MediapipeFinder()
    person, *others = finder.find(photo)
    assert not others and person.x1 < 220 < person.x2 and person.score > 0.5
    finder.restart()
    points = finder.observe(photo, person)
    # Where one sees them in the photo: nose, left and right eye, left and right shoulder, chin.
    for index, place in ((0, (228, 138)), (1, (245, 118)), (2, (205, 118)), (5, (310, 260)), (6, (130, 260)), (23 + 8, (230, 185))):
        assert np.linalg.norm(points[index, :2] - place) < 40 and points[index, 2] > 0.5, (index, points[index])
    assert points[1, 0] > points[2, 0]  # the person's left is the picture's right
    face = points[FACE]
    assert face[0, 0] < face[16, 0] and face[36, 0] < face[45, 0] and face[8, 1] == face[:17, 1].max()
    mask = next(finder.masks(lambda: [photo], [person], points[None]))
    assert mask.dtype == bool and mask.shape == photo.shape[:2]
    assert mask[130:180, 210:250].all() and mask[380:500, 200:260].all() and not mask[:60, 10:90].any()


def test_two_people_in_one_photo():
    pytest.importorskip("mediapipe", reason="the extra animate is not installed")
    photo = pytest.importorskip("skimage.data", reason="a photo comes with scikit-image").astronaut()
    pair = np.concatenate([photo, photo], axis=1)
    finder = mp.MediapipeFinder(masks=False)
    left, right = sorted(finder.find(pair), key=lambda person: person.x1)
    for person, x in ((right, 512 + 228), (left, 228)):
        finder.restart()
        assert np.linalg.norm(finder.observe(pair, person)[0, :2] - (x, 138)) < 40  # that one's nose


def test_a_small_person_is_looked_for_in_parts_of_the_frame():
    pytest.importorskip("mediapipe", reason="the extra animate is not installed")
    photo = pytest.importorskip("skimage.data", reason="a photo comes with scikit-image").astronaut()
    wide = np.full((720, 1280, 3), 90, dtype=np.uint8)
    wide[500:592, 900:992] = photo[:414:4, :414:4][:92, :92]
    finder = mp.MediapipeFinder(masks=False)
    (person,) = finder.find(wide)
    assert person.x1 < 955 < person.x2 and person.y1 < 535 < person.y2


def test_squares_cover_the_frame():
    for width, height in ((1280, 720), (720, 1280), (500, 480)):
        covered = np.zeros((height, width), dtype=bool)
        for x, y, side in mp.squares(width, height):
            covered[y : y + side, x : x + side] = True
        assert covered.all() or max(width, height) > 3 * min(width, height)


# ------------------------------------------------------------------------------------------------------- published


def constant_model(path: Path, result: np.ndarray, size: tuple[int, int]) -> None:
    """An ONNX file for input [1, 3, height, width] that returns `result` plus zero times its input."""
    onnx = pytest.importorskip("onnx", reason="writes the small models of this test")
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("ReduceMean", ["picture"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["result", "nothing"], ["found"]),
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, *size])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, list(result.shape))],
        [numpy_helper.from_array(result.astype(np.float32), "result"), numpy_helper.from_array(np.float32(0), "zero")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime", reason="the extra animate-published is not installed")
    rows = np.array([[[64, 64, 320, 640, 0.9, 0], [70, 70, 320, 640, 0.8, 0], [400, 100, 500, 600, 0.7, 0], [0, 0, 640, 640, 0.95, 56]]])
    constant_model(tmp_path / DETECTOR, rows, (640, 640))
    heatmaps = np.zeros((1, 133, 64, 48))
    heatmaps[0, np.arange(133), 32, 24] = 0.75
    constant_model(tmp_path / POSE_NETWORK / "end2end.onnx", heatmaps, (256, 192))
    return tmp_path


def test_published_models(published):
    finder = PublishedFinder(published, masks=False)
    frame = np.zeros((320, 640, 3), dtype=np.uint8)
    people = finder.find(frame)
    assert [person[:4] for person in people] == [(64, 32, 320, 320), (400, 50, 500, 300)]  # a chair in front hides nobody
    points = finder.observe(frame, people[1])
    assert points.shape == (133, 3) and (points[:, 2] == 0.75).all()
    np.testing.assert_allclose(points[:, :2], np.tile((450, 175), (133, 1)), atol=4)  # the centre of the box


def test_published_models_that_are_missing_or_others(published):
    with pytest.raises(CheckpointError, match="no SAM 2 in the layout of transformers"):
        PublishedFinder(published)
    constant_model(published / POSE_NETWORK / "end2end.onnx", np.zeros((1, 17, 64, 48)), (256, 192))
    with pytest.raises(CheckpointError, match=r"returned \[1, 17, 64, 48\] and not \[1, 133, 64, 48\]"):
        PublishedFinder(published, masks=False).observe(np.zeros((64, 64, 3), dtype=np.uint8), Person(0, 0, 64, 64, 1))
    (published / DETECTOR).write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"yolov10m.onnx cannot be opened"):
        PublishedFinder(published, masks=False)
    (published / DETECTOR).unlink()
    with pytest.raises(CheckpointError, match="the person detector is missing"):
        PublishedFinder(published, masks=False)


def test_sam2_is_driven(tmp_path):
    """A SAM 2 of random weights, at a small size: prompts, tracking and mask sizes; what it finds means nothing."""
    transformers = pytest.importorskip("transformers", reason="the extra animate-published is not installed")
    from kinograph.preprocess.animate.sam2_masks import Sam2Segmenter

    save_small_sam2(transformers, tmp_path)
    frames = [np.random.default_rng(i).integers(0, 256, (48, 80, 3), dtype=np.uint8) for i in range(6)]
    points = np.tile(np.array([40.0, 24.0, 0.9]), (6, 133, 1))
    segmenter = Sam2Segmenter(tmp_path)
    masks = list(segmenter.masks(iter(frames), points))
    assert len(masks) == 6 and all(mask.shape == (48, 80) and mask.dtype == bool for mask in masks)
    points[..., 2] = 0.1  # nothing to prompt with
    assert not any(mask.any() for mask in segmenter.masks(iter(frames), points))


def save_small_sam2(transformers, folder: Path) -> None:
    size = 128
    backbone = {
        "hidden_size": 8, "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2],
        "blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3], "image_size": [size, size], "model_type": "sam2_hiera_det_model",
    }  # fmt: skip
    vision = {
        "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[size // 4] * 2, [size // 8] * 2, [size // 16] * 2],
    }  # fmt: skip
    config = transformers.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": size},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
        image_size=size, memory_attention_hidden_size=32, memory_attention_num_layers=1, memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[size // 16] * 2, memory_encoder_hidden_size=32, memory_encoder_output_channels=16,
        mask_downsampler_embed_dim=32, memory_fuser_embed_dim=32, memory_fuser_intermediate_dim=32,
    )  # fmt: skip
    transformers.Sam2VideoModel(config).save_pretrained(folder)


# -------------------------------------------------------------------------------------------------------- tracking


def box(x: float, size: float = 40) -> Person:
    return Person(x, 10, x + size, 10 + size, 0.9)


def test_people_keep_their_track():
    people = [[box(10 + 5 * i), box(200 - 5 * i, 50)] if i != 4 else [] for i in range(12)]
    people[7] = people[7][::-1]  # detectors list people in any order
    first, second = tracks_of(people)
    assert [first.boxes[i].x1 for i in (0, 7, 11)] == [200, 165, 145] and second.boxes[11].x1 == 65
    assert followed(people, person=1)[4] is None and followed(people, click=(12, 12))[5] == box(35)


def test_boxes_between_those_found():
    boxes = boxes_between([None, box(0), None, box(40)], every=2, total=8)
    assert [b.x1 for b in boxes] == [0, 0, 0, 10, 20, 30, 40, 40]


def test_gaps_are_filled_from_both_sides():
    present = np.array([False, True, False, False, False, True])
    assert nearest_present(present).tolist() == [1, 1, 1, 1, 5, 5]
    points = np.zeros((6, 1, 3))
    points[1], points[5] = (0, 10, 0.9), (40, 10, 0.6)
    assert filled(points, present)[:, 0].round(6).tolist() == [
        [0, 10, 0.9], [0, 10, 0.9], [10, 10, 0.6], [20, 10, 0.6], [30, 10, 0.6], [40, 10, 0.6],
    ]  # fmt: skip


def test_smoothing_takes_jitter_and_leaves_even_motion():
    steady = np.zeros((20, 2, 3))
    steady[..., 0], steady[..., 2] = np.arange(20)[:, None], 1
    np.testing.assert_allclose(smoothed(steady, 2)[3:-3], steady[3:-3])
    jitter = steady + np.random.default_rng(0).normal(size=steady.shape) * (1, 1, 0)
    assert np.abs(smoothed(jitter, 2) - steady)[3:-3].mean() < 0.6 * np.abs(jitter - steady)[3:-3].mean()
    jitter[10, 0] = (500, 500, 0)  # not seen: it moves nobody
    assert abs(smoothed(jitter, 2)[9, 0, 0] - 9) < 3 and smoothed(jitter, 0) is jitter
