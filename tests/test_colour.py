"""Colours of long videos: how drift is measured, and how later clips are kept at the first one's colours."""
from __future__ import annotations

import pytest
import torch

from kinograph.media.colour import anchored, colours
from kinograph.media.drift import describe_drift, measure_drift


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


def test_drift_is_measured() -> None:
    frames = ((moving() + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    brighter = (frames.float() + 25.5).clamp(0, 255).to(torch.uint8)
    same, drifted = measure_drift([frames, frames]), measure_drift([frames, brighter])
    assert same[0].join is None and same[1].colour == 0 and same[1].sharpness == pytest.approx(1)
    assert drifted[1].colour == pytest.approx(0.1, abs=0.01)
    assert drifted[1].join > 3 * same[1].join
    assert "2 clips" in describe_drift(drifted) and describe_drift(drifted[:1]) == ""
