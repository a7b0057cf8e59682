"""The judge reads true clips without error, also small, compressed and blurred ones."""
from __future__ import annotations

import io
import math
from dataclasses import replace

import av
import pytest
import torch

from kinograph.training.judge import UNCLEAR, accuracy_by_class, accuracy_of, judge, judge_accuracy, psnr
from kinograph.training.toybox import BACKGROUNDS, COLORS, MOTIONS, SHAPES, SPEEDS, draw, sample_scenes

SIZE = {"height": 128, "width": 128, "frames": 9}
PERFECT = {"color": 1.0, "shape": 1.0, "motion": 1.0, "background": 1.0, "all": 1.0}


def _every_motion():
    """One scene per motion, with all shapes, colours and backgrounds among them; half have a second object."""
    n = len(MOTIONS)
    scene = sample_scenes(n, 0, camera_rate=0.0)
    motion, row = torch.arange(n), torch.arange(n)
    shape = torch.where(motion == MOTIONS.index("spin"), SHAPES.index("star"), row % len(SHAPES))
    camera = motion >= MOTIONS.index("pan left")
    return replace(
        scene,
        motion=motion,
        shape=shape,
        second_shape=(shape + 1) % len(SHAPES),
        color=row % len(COLORS),
        second_color=(row + 3) % len(COLORS),
        background=row % len(BACKGROUNDS),
        speed=torch.full((n,), SPEEDS.index("")),
        second=((row % 2 == 0) & ~camera).float(),
        pattern=torch.where(camera, 1 + row % 3, 0),
    )


def _compressed(clip):
    """`clip` after H.264 with 4:2:0 colour, as uint8 `[3, T, H, W]`."""
    pictures = ((clip.permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "23"})
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames).permute(3, 0, 1, 2)


def _blurred(clip):
    soft = torch.nn.functional.avg_pool2d(clip, 3, stride=1, padding=1, count_include_pad=False)
    return soft + 0.04 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))


def test_true_clips_of_every_motion():
    scene = _every_motion()
    assert judge_accuracy(draw(scene, **SIZE), scene) == PERFECT


def test_compressed_and_blurred_clips():
    scene = _every_motion()[2::3]
    clips = draw(scene, **SIZE)
    assert judge_accuracy([_compressed(clip) for clip in clips], scene) == PERFECT
    assert judge_accuracy([_blurred(clip) for clip in clips], scene) == PERFECT


def test_a_reversed_clip_is_not_what_was_asked_for():
    scene = _every_motion()[:2]
    shares = judge_accuracy(draw(scene, **SIZE).flip(2), scene)
    assert shares["motion"] == 0.0 and shares["shape"] == 1.0


def test_a_clip_without_an_object_is_unclear():
    verdict = judge(torch.full((3, 5, 64, 64), 0.94))
    assert (verdict.color, verdict.shape, verdict.motion) == (UNCLEAR,) * 3
    assert verdict.background == "white"


def test_an_object_that_vanishes_has_no_motion():
    scene = _every_motion()[:1]
    clip = draw(scene, **SIZE)[0]
    clip[:, 5:] = clip[:, :1, :1, :1]
    assert judge(clip).motion == UNCLEAR


def test_shares_are_counted_per_attribute_and_class():
    scene = _every_motion()[:2]
    yes = dict.fromkeys(("color", "shape", "motion", "background"), True)
    agreements = [yes, {**yes, "shape": False}]
    assert accuracy_of(agreements) == {**PERFECT, "shape": 0.5, "all": 0.5}
    assert accuracy_by_class(agreements, scene)["shape"] == {"circle": 1.0, "square": 0.0}


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match=r"got \[17, 3, 8, 8\]"):
        judge(torch.zeros(17, 3, 8, 8))
    with pytest.raises(ValueError, match="got 1 clips and 2 scenes"):
        judge_accuracy(torch.zeros(1, 3, 5, 8, 8), _every_motion()[:2])


def test_psnr_of_known_errors():
    a = torch.zeros(3, 2, 4, 4)
    b = a + torch.tensor([0.0, 0.02, 0.2])[:, None, None, None]
    assert psnr(a, b).tolist() == pytest.approx([math.inf, 40.0, 20.0], abs=1e-3)
