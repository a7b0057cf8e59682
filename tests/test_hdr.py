"""High dynamic range video is read as it looks on a standard screen."""
from __future__ import annotations

import av
import numpy as np
import pytest

from kinograph.media.hdr import HLG, PQ, standard_signal, to_standard_range
from kinograph.media.video import read_video


@pytest.mark.parametrize("transfer, white", [(PQ, 0.58), (HLG, 0.75)])  # of ITU-R BT.2408: diffuse white's signal
def test_greys_stay_grey_and_rise(transfer, white):
    levels = np.linspace(0, 1, 30)
    grey = standard_signal(np.repeat(levels[:, None], 3, axis=1), transfer)
    np.testing.assert_allclose(grey, np.repeat(grey[:, :1], 3, axis=1), atol=2e-3)
    assert grey[0, 0] < 0.01 and (np.diff(grey[:, 0]) > -1e-9).all() and grey[-1, 0] > 0.95
    diffuse = standard_signal(np.full((1, 3), white), transfer)
    assert 0.9 < diffuse[0, 0] < 0.97  # bright, with room above for highlights


def test_other_video_is_left_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    assert to_standard_range(pixels, 1) is pixels


def test_a_tagged_file(tmp_path):
    # Reference white in PQ is coded as 58 %: read without regard to the tag it would be a middle grey.
    path = tmp_path / "hdr.mp4"
    tags = {"color_primaries": "bt2020", "color_trc": "smpte2084", "colorspace": "bt2020nc", "color_range": "tv"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "1", **tags})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame(64, 48, "yuv420p")
        for plane, value in zip(frame.planes, (16 + round(0.58 * 219), 128, 128)):
            plane.update(bytes([value]) * plane.buffer_size)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    pixels = read_video(path)[0][0].float()
    assert 225 < pixels.mean() < 250 and pixels.std() < 3
