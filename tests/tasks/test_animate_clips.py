"""The pieces of the animation model's conditioning: stored masks, lengths and letter-boxes."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import case, tensors

from kinograph.media.letterbox import letterbox
from kinograph.tasks import animate_clips as clips


def test_clip_lengths():
    for key, expected in case("animate_y_mask")["padded_length"].items():
        assert clips.padded_length(*map(int, key.split(","))) == expected


def test_back_and_forth():
    for key, expected in case("animate_y_mask")["tail_padding"].items():
        assert clips.back_and_forth(*map(int, key.split(","))) == expected
    assert clips.back_and_forth(1, 4) == [0, 0, 0, 0]


@pytest.mark.parametrize("num_frames", [1, 4, 5])
def test_a_video_no_longer_than_the_overlap_gets_a_clip(num_frames):
    assert clips.clip_starts(num_frames, 77, 5) == [0]
    assert clips.padded_length(num_frames, 77, 5) == 77


@pytest.mark.parametrize("num_given", [0, 1, 5])
@pytest.mark.parametrize("mode", ["animate", "replace"])
def test_masks(mode, num_given):
    description, data = case("animate_y_mask"), tensors("animate_y_mask")
    person = data["person_mask"] if mode == "replace" else None
    actual = clips.mask_channels(
        person, num_frames=description["config"]["frames"], size=tuple(description["config"]["latent"][1:]), num_given=num_given
    )
    assert torch.equal(actual, data[f"{mode}_{num_given}"])


def test_letterbox():
    data = tensors("animate_y_mask")
    for source, result in (("padsrc_45x30", "padres_45x30_to_48x64"), ("padsrc_30x50", "padres_30x50_to_64x48")):
        height, width = data[result].shape[:2]
        actual = letterbox(data[source], width, height)
        assert (actual.int() - data[result].int()).abs().max() <= 1


def test_folding_repeats_the_first_frame():
    mask = torch.arange(9.0).view(9, 1, 1)
    assert np.array_equal(clips.fold_frames(mask).flatten(1).T, [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]])
