"""Colours of long videos: how drift is measured, and how later clips are kept at the first one's colours."""
from __future__ import annotations

import pytest
import torch

from kinograph.media.colour import FADE, MAX_TONE, anchored, colours, joined
from kinograph.media.drift import describe_drift, join_step, measure_drift


def moving(*, frames: int = 32, seed: int = 0) -> torch.Tensor:
    """[3, T, 24, 24]: a bright square that crosses a textured ground."""
    generator = torch.Generator().manual_seed(seed)
    ground = 0.3 * torch.randn(3, 1, 24, 24, generator=generator)
    video = ground.expand(-1, frames, -1, -1).clone()
    for t in range(frames):
        video[0, t, 8:14, t % 18 : t % 18 + 6] = 0.9
    return video.clamp(-1, 1)


def test_the_anchor_takes_a_tint_and_lost_contrast_back() -> None:
    true = moving()
    anchor = colours(true)
    drifted = 0.9 * true + torch.tensor([0.08, -0.05, 0.02])[:, None, None, None]
    healed = anchored(drifted, anchor, 1.0)
    assert (drifted - true).abs().mean() > 0.04
    assert (healed - true).abs().mean() < 0.012
    halfway = anchored(drifted, anchor, 0.5)
    assert (healed - true).abs().mean() < (halfway - true).abs().mean() < (drifted - true).abs().mean()


def test_the_anchor_leaves_a_clip_that_has_not_drifted() -> None:
    true = moving()
    assert (anchored(true, colours(true), 1.0) - true).abs().max() < 0.03
    assert torch.equal(anchored(true, colours(true), 0.0), true) or (anchored(true, colours(true), 0.0) - true).abs().max() < 1e-6


def test_the_anchor_makes_no_step_inside_a_clip() -> None:
    """The correction changes slowly, so that a join stays as smooth as it was."""
    true = moving()
    drifted = 0.9 * true + 0.05
    change = (anchored(drifted, colours(true), 1.0) - drifted).mean(dim=(0, 2, 3))
    assert change.diff().abs().max() < 0.1 * change.abs().mean()


def test_a_join_takes_the_step_in_colour_off_and_keeps_what_moves() -> None:
    true = 0.9 * moving(frames=33)
    before, after = true[:, 0], true[:, 1:]
    tint = torch.tensor([0.05, -0.03, 0.02])[:, None, None]
    found = joined(after + tint[:, None], before=before, again=before + tint)
    assert (found[:, 0] - after[:, 0]).abs().max() < 1e-5
    assert torch.equal(found[:, FADE:], (after + tint[:, None])[:, FADE:])  # from there on the clip has its own colours
    steps = (found - after).mean(dim=(2, 3)).diff(dim=1).abs()
    assert steps.max() < 1.2 * 0.05 / FADE  # and comes to them evenly


def test_a_join_does_not_draw_one_picture_into_another() -> None:
    true, other = moving(), moving(seed=5)
    assert torch.equal(joined(true, before=true[:, 0], again=true[:, 0]), true)
    changed = joined(true, before=other[:, 0] * 0 + 1, again=true[:, 0] * 0 - 1)
    assert (changed - true).abs().max() <= MAX_TONE + 1e-6


def test_a_join_is_compared_with_the_steps_on_both_sides() -> None:
    ramp = torch.arange(12.0)[:, None, None, None].expand(-1, 4, 4, 3)
    assert join_step(ramp[:6], ramp[6:]) == pytest.approx(1)
    assert join_step(ramp[:6], ramp[6:] + 2) == pytest.approx(3)
    uneven = torch.tensor([0.0, 1, 1, 1, 1, 2, 2, 2, 2, 3])[:, None, None, None].expand(-1, 4, 4, 3)  # a step of each four is larger
    assert join_step(uneven[:5], uneven[5:]) == pytest.approx(4)


def test_drift_is_measured() -> None:
    frames = ((moving() + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    brighter = (frames.float() + 25.5).clamp(0, 255).to(torch.uint8)
    same, drifted = measure_drift([frames, frames]), measure_drift([frames, brighter])
    assert same[0].join is None and same[1].colour == 0 and same[1].sharpness == pytest.approx(1)
    assert drifted[1].colour == pytest.approx(0.1, abs=0.01)
    assert drifted[1].join > 3 * same[1].join
    assert "2 clips" in describe_drift(drifted) and describe_drift(drifted[:1]) == ""
