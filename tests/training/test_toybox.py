"""Toybox draws the same clips for the same seed, whole or in windows, and keeps training and test combinations apart."""
from __future__ import annotations

import random
from dataclasses import fields, replace

import pytest
import torch
from PIL import Image

from kinograph.training.captions import BACKGROUND_WORDS, SHAPE_NOUNS, caption, captions, held_out_prompts
from kinograph.training.sheets import contact_sheet
from kinograph.training.toybox import (
    BACKGROUNDS,
    CAMERA_MOTIONS,
    COLORS,
    MOTIONS,
    PATTERNS,
    SHAPES,
    SPINNABLE,
    describe,
    draw,
    is_held_out,
    object_mask,
    object_windows,
    sample_scenes,
)

SIZE = {"height": 64, "width": 64, "frames": 5}


def _combinations(scene):
    return {(d.color, d.shape, d.motion, d.background) for d in (describe(scene, index) for index in range(len(scene)))}


def test_the_same_seed_gives_the_same_scenes_and_captions():
    first, again, other = (sample_scenes(32, seed) for seed in (3, 3, 4))
    for field in fields(first):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name)), field.name
    assert not torch.equal(first.color, other.color)
    assert captions(first, 1) == captions(again, 1) != captions(first, 2)


def test_held_out_combinations_are_never_trained_and_leave_no_triple_untrained():
    triples = [(c, s, m) for c in COLORS for s in SHAPES for m in MOTIONS if m != "spin" or s in SPINNABLE]
    held = [sum(is_held_out(*triple, background) for background in BACKGROUNDS) for triple in triples]
    assert set(held) == {0, 2}
    assert 0.07 < held.count(2) / len(held) < 0.13
    train, held_out = (_combinations(sample_scenes(2000, 0, split=split)) for split in ("train", "held_out"))
    assert not any(is_held_out(*combination) for combination in train)
    assert all(is_held_out(*combination) for combination in held_out)
    assert {motion for _, _, motion, _ in held_out} == set(MOTIONS)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'held_out'; got 'test'"):
        sample_scenes(1, 0, split="test")


def test_scenes_follow_the_rates_and_rules():
    scene = sample_scenes(4000, 1)
    camera = scene.motion >= MOTIONS.index(CAMERA_MOTIONS[0])
    assert abs(camera.float().mean() - 0.08) < 0.02
    assert abs(scene.second.mean() - 0.20) < 0.03
    assert not (scene.second[camera] > 0).any()
    assert (scene.pattern[camera] != PATTERNS.index("plain")).all()
    assert (scene.second_color != scene.color).all() and (scene.second_shape != scene.shape).all()
    round_ones = torch.isin(scene.shape, torch.tensor([SHAPES.index("circle"), SHAPES.index("ring")]))
    assert not (scene.motion[round_ones] == MOTIONS.index("spin")).any()


def test_clips_have_the_promised_shape_and_range():
    scene = sample_scenes(3, 0)
    clip, mask = draw(scene, **SIZE), object_mask(scene, **SIZE)
    assert clip.shape == (3, 3, 5, 64, 64) and clip.dtype == torch.float32
    assert mask.shape == (3, 1, 5, 64, 64)
    assert clip.min() >= -1 and clip.max() <= 1
    assert mask.min() >= 0 and mask.max() == 1


def test_a_batch_is_its_rows():
    scene = sample_scenes(4, 2)
    whole = draw(scene, **SIZE)
    torch.testing.assert_close(whole[2:3], draw(scene[2:3], **SIZE), rtol=0, atol=1e-5)


def test_a_window_is_a_crop_of_the_whole():
    scene = sample_scenes(6, 5, camera_rate=0.5)
    top, left = torch.tensor([0, 3, 40, 17, 8, 30]), torch.tensor([0, 12, 32, 5, 9, 31])
    window = (top, left, 24, 32)
    for function in (draw, object_mask):
        whole, part = function(scene, **SIZE), function(scene, **SIZE, window=window)
        crops = [clip[..., y : y + 24, x : x + 32] for clip, y, x in zip(whole, top.tolist(), left.tolist())]
        torch.testing.assert_close(part, torch.stack(crops), rtol=0, atol=1e-5)


def test_object_windows_lie_inside_and_near_the_object():
    scene = sample_scenes(64, 6, camera_rate=0.3)
    window = object_windows(scene, **SIZE, size=(24, 32), generator=torch.Generator().manual_seed(0))
    top, left, rows, columns = window
    assert (rows, columns) == (24, 32)
    assert top.min() >= 0 and top.max() <= 64 - 24 and left.min() >= 0 and left.max() <= 64 - 32
    seen = object_mask(scene, **SIZE, window=window).amax((1, 2, 3, 4)) > 0.5
    assert seen.float().mean() > 0.95


def test_a_margin_grows_the_mask():
    scene = sample_scenes(4, 7)
    plain, grown = (object_mask(scene, **SIZE, margin=margin) for margin in (0.0, 2.0))
    assert (grown >= plain).all() and grown.sum() > 1.1 * plain.sum()


def test_objects_stay_inside_the_picture():
    scene = sample_scenes(150, 8, camera_rate=0.0)
    mask = object_mask(replace(scene, second=torch.zeros(150)), **SIZE)
    edge = torch.cat([mask[..., 0, :], mask[..., -1, :], mask[..., 0], mask[..., -1]], dim=-1)
    assert edge.max() == 0


def test_complete_captions_name_every_attribute():
    scene, rng = sample_scenes(400, 9), random.Random(0)
    for index in range(400):
        text, wanted = caption(scene, index, rng, complete=True).lower(), describe(scene, index)
        assert wanted.color in text
        assert any(noun in text for noun in SHAPE_NOUNS[wanted.shape]), text
        assert any(word in text for word in BACKGROUND_WORDS[wanted.background]), text
        assert ("camera" in text) == (wanted.motion in CAMERA_MOTIONS), text
        assert wanted.second is None or (wanted.second[0] in text and wanted.second[2] in text), text


def test_captions_use_few_words_and_no_stray_blanks():
    texts = captions(sample_scenes(2000, 10), 0)
    words = {word.strip(",.") for text in texts for word in text.lower().split()}
    assert len(words) < 200
    assert all(text == " ".join(text.split()) and ",," not in text and " ," not in text for text in texts)
    assert len(set(texts)) > 1500


def test_opposite_motions_never_share_a_caption():
    scene = sample_scenes(8, 11, second_rate=0.0, camera_rate=0.0, pattern_rate=0.0)
    texts = {}
    for motion in MOTIONS:
        same = replace(scene, **{name: torch.zeros_like(getattr(scene, name)) for name in ("color", "shape", "size", "background")})
        same = replace(same, motion=torch.full((8,), MOTIONS.index(motion)), speed=torch.ones(8, dtype=torch.long))
        texts[motion] = {text.lower() for seed in range(30) for text in captions(same, seed, complete=True)}
    for one in MOTIONS:
        for two in MOTIONS:
            assert one == two or not texts[one] & texts[two], (one, two)


def test_held_out_prompts_belong_to_their_scenes():
    scene, prompts = held_out_prompts(20, 0)
    assert len(scene) == len(prompts) == 20
    assert all(is_held_out(*combination) for combination in _combinations(scene))
    assert all(describe(scene, index).color in text.lower() for index, text in enumerate(prompts))


def test_a_contact_sheet_holds_every_clip(tmp_path):
    scene = sample_scenes(3, 12)
    contact_sheet(draw(scene, **SIZE), tmp_path / "sheet.png", captions(scene, 0), frames=4, columns=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 2 * 4 * 64 and sheet.height > 2 * 64
    with pytest.raises(ValueError, match="got 3 clips and 1 captions"):
        contact_sheet(draw(scene, **SIZE), tmp_path / "sheet.png", ["one"])
