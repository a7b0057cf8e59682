"""Pictures read as they look, videos written whole or not at all, names that every file system takes."""
from __future__ import annotations

import errno
import os
import struct
from datetime import datetime
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from reference import case, tensors

from kinograph.config import T2V_A14B, TI2V_5B
from kinograph.errors import MediaError, RequestError
from kinograph.media import (
    VideoWriter,
    check_writable,
    cover,
    default_name,
    encoders,
    probe,
    read_image,
    read_metadata,
    read_video,
    resize_bicubic,
    resize_lanczos_crop,
    safe_stem,
    to_uint8,
    unique_path,
    write_video,
)
from kinograph.tasks.geometry import i2v_size, ti2v_size

RECIPE_LIKE = '{"p": "猫 🎬 \\"quoted\\" \'single\' ; = # \\\\ é\n\r\n tab\t"}' * 250
MOVIES = (".mp4", ".mov", ".webm")
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40), (30, 90, 160), (128, 128, 128)]


def flat(colour: tuple[int, int, int], *, frames: int = 3, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8).expand(frames, height, width, 3).contiguous()


def noise(frames: int, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------------------- pictures


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (15, 7)), (6, (7, 0)), (8, (0, 15))])
def test_exif_orientation(tmp_path, orientation, corner):
    lying = Image.new("RGB", (16, 8), "black")
    lying.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(save(lying, tmp_path / "a.png", exif=exif))
    assert image.size == ((16, 8) if orientation in (1, 3) else (8, 16))
    assert pixel(image, *corner) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_hidden_colours_do_not_show(tmp_path, mode):
    values = {"RGBA": [(10, 20, 30, 0), (10, 20, 30, 255)], "LA": [(10, 0), (10, 255)]}[mode]
    image = Image.new(mode, (2, 1))
    image.putdata(values)
    image = read_image(save(image, tmp_path / "a.png"))
    assert pixel(image, 0) == (255, 255, 255)
    assert pixel(image, 1) == ((10, 20, 30) if mode == "RGBA" else (10, 10, 10))


def test_palette_with_a_transparent_entry(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putdata([0, 1])
    image = read_image(save(image, tmp_path / "a.png", transparency=0))
    assert [pixel(image, x) for x in (0, 1)] == [(255, 255, 255), (0, 0, 200)]


def test_cmyk(tmp_path):
    assert pixel(read_image(save(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), tmp_path / "a.tif"))) == (255, 255, 255)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path, suffix):
    values = np.array([[0, 257, 0x8000, 0xFFFF]], dtype=np.uint16)
    image = read_image(save(Image.fromarray(values), tmp_path / f"a{suffix}"))
    assert [pixel(image, x)[0] for x in range(4)] == [0, 1, 128, 255]


def test_int_and_float_greys():
    assert pixel(read_image(Image.fromarray(np.array([[65535]], dtype=np.int32)))) == (255, 255, 255)
    assert pixel(read_image(Image.fromarray(np.array([[0.5]], dtype=np.float32)))) == (128, 128, 128)
    with pytest.raises(MediaError, match="outside 0 to 65535"):
        read_image(Image.fromarray(np.array([[70000]], dtype=np.int32)))


def test_one_bit_and_animation(tmp_path):
    assert pixel(read_image(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    assert pixel(read_image(save(first, tmp_path / "a.gif", save_all=True, append_images=[second]))) == (255, 0, 0)


def test_colour_profiles(tmp_path):
    grey = Image.new("RGB", (4, 4), (128, 64, 32))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for name, profile in (("srgb", srgb), ("wrong kind", lab), ("damaged", b"not a profile")):
        assert pixel(read_image(save(grey, tmp_path / f"{name}.png", icc_profile=profile))) == (128, 64, 32), name


def test_tensor_and_pil_sources_agree_with_the_file(tmp_path):
    pixels = noise(1)[0]
    image = Image.fromarray(pixels.numpy())
    as_tensor = pixels.permute(2, 0, 1) / 127.5 - 1
    for source in (image, as_tensor, save(image, tmp_path / "a.png"), str(tmp_path / "a.png")):
        assert np.array_equal(np.asarray(read_image(source)), pixels.numpy())
    with pytest.raises(MediaError, match=r"float \[3, H, W\]"):
        read_image(pixels)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00", "HEIC"),
        (b"\x89PNG\r\n\x1a\n then nothing of use", "damaged"),
        (b"BM" + bytes(40), "damaged"),
        (os.urandom(300), "damaged"),
    ],
)
@pytest.mark.parametrize("read", [read_image, read_video])
def test_unreadable_files_say_why(tmp_path, content, message, read):
    path = tmp_path / "input.bin"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=message) as caught:
        read(path)
    assert "input.bin" in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_picture(tmp_path):
    path = save(Image.fromarray(noise(1)[0].numpy()), tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(MediaError, match="damaged"):
        read_image(path)


def test_missing_and_folder(tmp_path):
    for read in (read_image, read_video, probe):
        with pytest.raises(MediaError, match="there is no"):
            read(tmp_path / "none.png")
        with pytest.raises(MediaError, match="is a folder"):
            read(tmp_path)


@pytest.mark.parametrize("side, message", [(13_000, "13000 x 13000 pixels, 169 megapixels"), (20_000, "400000000 pixels")])
@pytest.mark.filterwarnings("error")
def test_huge_picture_is_refused_before_decoding(tmp_path, side, message):
    path = save(Image.new("RGB", (1, 1)), tmp_path / "bomb.bmp")
    data = bytearray(path.read_bytes())
    data[18:26] = struct.pack("<ii", side, side)  # the header claims a size the file does not have
    path.write_bytes(data)
    with pytest.raises(MediaError, match=message):
        read_image(path)


# ----------------------------------------------------------------------------------------------- sizes and resizing


@pytest.mark.parametrize("row", case("geometry")["sizes"], ids=lambda row: f"{row['image']}@{row['area']}")
def test_sizes_are_the_published_ones(row):
    image_width, image_height = row["image"]
    expected = row["i2v_A14B"]
    assert i2v_size(image_width, image_height, row["area"]) == (expected["width"], expected["height"])
    expected = row["ti2v_5B"]
    size = ti2v_size(image_width, image_height, row["area"])
    assert size == (expected["width"], expected["height"])
    resized, corner = cover(image_width, image_height, width=size[0], height=size[1])
    assert [list(resized), list(corner)] == [expected["resized"], expected["crop_left_top"]]


@pytest.mark.parametrize("row", case("geometry")["tokens"])
def test_token_counts(row):
    spec = {8: T2V_A14B, 16: TI2V_5B}[row["spatial_stride"]]
    latent = spec.vae.latent_size(num_frames=row["frames"], height=row["height"], width=row["width"])
    assert list(latent) == row["latent"]
    assert spec.dit.num_tokens(latent) == row["tokens"]


@pytest.mark.parametrize("size", [i2v_size, ti2v_size])
@pytest.mark.parametrize("image", [(16_000, 10), (10, 16_000), (100_000, 1)])
def test_thin_pictures_are_refused(size, image):
    with pytest.raises(RequestError, match=f"{image[0]} x {image[1]} is too thin"):
        size(*image, 399_360)
    with pytest.raises(RequestError, match="crop it to an aspect ratio below"):
        size(16, 1, 2_560 if size is i2v_size else 10_240)


@pytest.mark.parametrize("size, cell", [(i2v_size, 16), (ti2v_size, 32)])
def test_every_ordinary_picture_has_a_size(size, cell):
    for image_width in range(60, 2000, 97):
        for image_height in range(60, 2000, 89):
            width, height = size(image_width, image_height, 399_360)
            assert width % cell == height % cell == 0 < width * height <= 399_360


def test_resizing_matches_the_published_pixels():
    stored = tensors("pipe_ti2v_image")
    _, _, height, width = stored["out.image_pixels"].shape
    image = read_image(Image.fromarray(stored["in.image"].numpy()))
    assert torch.equal(resize_lanczos_crop(image, width, height), stored["out.image_pixels"][:, 0])

    stored = tensors("pipe_i2v_unipc")
    _, _, height, width = stored["out.image_pixels"].shape
    image = read_image(Image.fromarray(stored["in.image"].numpy()))
    torch.testing.assert_close(resize_bicubic(image, width, height), stored["out.image_pixels"][:, 0], atol=1e-6, rtol=0)


def test_to_uint8_rounds_and_clamps():
    values = torch.tensor([-2.0, -1.0, -1 + 0.6 / 127.5, 0.0, 1.0, 3.0])
    frames = to_uint8(values.expand(3, 1, 1, 6))
    assert frames.shape == (1, 1, 6, 3) and frames[0, 0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]
    assert torch.equal(to_uint8(values.to(torch.bfloat16).expand(3, 1, 1, 6))[0, 0, 3:], frames[0, 0, 3:])
    with pytest.raises(MediaError, match="frame 2"):
        to_uint8(torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), torch.nan)], dim=1))


# -------------------------------------------------------------------------------------------------------- video out


@pytest.mark.parametrize("suffix", MOVIES)
def test_colours_survive(tmp_path, suffix):
    for index, colour in enumerate(COLOURS):
        path = write_video(tmp_path / f"{index}{suffix}", flat(colour), 16)
        frames, _ = read_video(path)
        error = (frames.float().mean(dim=(0, 1, 2)) - torch.tensor(colour)).abs().max()
        assert error < 2, f"{colour} came back as {frames[0, 0, 0].tolist()}"


def test_stored_values_follow_bt709(tmp_path):
    red, green, blue = (value / 255 for value in (200, 120, 40))
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    expected = [16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748]
    with av.open(str(write_video(tmp_path / "a.mp4", flat((200, 120, 40)), 16))) as container:
        frame = next(container.decode(video=0))
    stored = [np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].mean() for plane in frame.planes]
    assert np.abs(np.array(stored) - expected).max() <= 1


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_every_player_opens_it(tmp_path, suffix):
    path = write_video(tmp_path / f"a{suffix}", noise(20, 64, 96), 16)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert (context.color_primaries, context.color_trc, int(context.colorspace), int(context.color_range)) == (1, 1, 1, 1)
        assert (stream.frames, stream.average_rate) == (20, 16)
        times = [frame.time for frame in container.decode(stream)]
        assert times == pytest.approx([i / 16 for i in range(20)])
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index must come first for browsers"


@pytest.mark.parametrize("fps", [8, 23.976, 24, 30000 / 1001, 60])
def test_rates(tmp_path, fps):
    assert read_video(write_video(tmp_path / "a.mp4", flat((9, 9, 9), frames=5), fps))[1] == pytest.approx(fps, rel=1e-4)
    for bad in (0, -1, float("nan")):
        with pytest.raises(MediaError, match="fps"):
            write_video(tmp_path / "b.mp4", flat((9, 9, 9)), bad)


def test_quality_of_a_smooth_clip(tmp_path):
    ramp = torch.linspace(-1, 1, 96).expand(3, 8, 64, 96)
    frames = to_uint8(ramp * torch.linspace(0.2, 1, 8)[None, :, None, None])
    for suffix in MOVIES:
        back, _ = read_video(write_video(tmp_path / f"a{suffix}", frames, 16))
        assert (back.float() - frames.float()).abs().mean() < 1.5, suffix


def test_chunks_give_the_same_file_as_one_tensor(tmp_path):
    frames = noise(9)
    whole = write_video(tmp_path / "whole.mp4", frames, 16)
    parts = write_video(tmp_path / "parts.mp4", (frames[i : i + 4] for i in range(0, 9, 4)), 16)
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize("suffix", (*MOVIES, ".gif", ".png", ""))
@pytest.mark.parametrize("text", [RECIPE_LIKE, RECIPE_LIKE * 6, None], ids=["10 kB", "over 64 kB", "none"])
def test_metadata_survives(tmp_path, suffix, text):
    path = write_video(tmp_path / f"a{suffix}", flat((1, 2, 3), frames=1), 16, metadata=text)
    assert read_metadata(path) == text


def test_gif(tmp_path):
    frames = torch.cat([flat((240, 20, 20)), flat((20, 20, 240), frames=4)])
    path = write_video(tmp_path / "a.gif", [frames[:2], frames[2:]], 16, metadata="text")
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        total = 0
        for index in range(image.n_frames):
            image.seek(index)
            total += image.info["duration"]
        assert total == round(7 * 100 / 16) * 10
    back, _ = read_video(path)
    assert (back[0].float().mean((0, 1)) - frames[0, 0, 0]).abs().max() < 3
    assert (back[-1].float().mean((0, 1)) - frames[-1, 0, 0]).abs().max() < 3


def test_folder_of_pictures(tmp_path):
    frames = noise(3, 31, 47)
    (tmp_path / "exists").mkdir()
    for path in (tmp_path / "frames", tmp_path / "exists", f"{tmp_path}/v1.2/"):
        folder = write_video(path, frames, 16, metadata="text")
        assert leftovers(folder) == ["00001.png", "00002.png", "00003.png"]
        assert np.array_equal(np.asarray(Image.open(folder / "00002.png")), frames[1].numpy())
    with pytest.raises(MediaError, match="exists already"):
        write_video(tmp_path / "frames", frames, 16)


def test_one_picture(tmp_path):
    frames = noise(2, 31, 47)
    assert np.array_equal(np.asarray(read_image(write_video(tmp_path / "a.png", frames[:1], 16))), frames[0].numpy())
    for chunks in (frames, [frames[:1], frames[1:]]):
        with pytest.raises(MediaError, match="one frame"):
            write_video(tmp_path / "b.png", chunks, 16)
    assert leftovers(tmp_path) == ["a.png"]


def test_odd_sizes_and_empty_videos_are_refused(tmp_path):
    with pytest.raises(MediaError, match="even width and height; got 47 x 31"):
        write_video(tmp_path / "a.mp4", noise(2, 31, 47), 16)
    for suffix in (*MOVIES, ".gif", ".png", ""):
        with pytest.raises(MediaError, match="no frames"):
            write_video(tmp_path / f"a{suffix}", noise(0), 16)
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", noise(2).float(), 16)
    with pytest.raises(ValueError, match="one size"):
        write_video(tmp_path / "a.mp4", [noise(2), noise(2, 64, 64)], 16)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("suffix", (*MOVIES, ".gif", ".png", ""))
@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_after_a_failure(tmp_path, suffix, failure):
    def chunks():
        yield flat((1, 2, 3), frames=1)
        assert all(name.startswith(".") and ".partial" in name for name in leftovers(tmp_path))
        raise failure

    with pytest.raises(failure):
        write_video(tmp_path / f"a{suffix}", chunks(), 16)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("code, message", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EIO, "cannot write")])
@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png", ""])
def test_write_errors_are_sentences(tmp_path, monkeypatch, suffix, code, message):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(encoders.VideoFile, "_mux", fail)
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(MediaError, match=message):
        write_video(tmp_path / f"a{suffix}", flat((1, 2, 3), frames=1), 16)
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="limits of a process are a POSIX thing")
def test_a_full_disk_is_noticed(tmp_path):
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        for suffix in (".mp4", ".webm", ".gif"):
            with pytest.raises(MediaError, match="cannot write"):
                write_video(tmp_path / f"a{suffix}", noise(20, 128, 128), 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert leftovers(tmp_path) == []


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(MediaError, match=r"exists already; choose another name, such as a_2\.mp4"):
        write_video(path, flat((1, 2, 3)), 16)
    assert path.read_bytes() == b"precious"
    assert write_video(path, flat((1, 2, 3)), 16, overwrite=True) == path and probe(path).num_frames == 3


def test_a_name_taken_meanwhile(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", fps=16) as writer:
        writer.add(flat((1, 2, 3)))
        (tmp_path / "a.mp4").write_bytes(b"precious")
    assert writer.path.name == "a_2.mp4" and (tmp_path / "a.mp4").read_bytes() == b"precious"


def test_check_writable(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "a.mp4")
    assert leftovers(tmp_path / "new" / "folder") == []
    with pytest.raises(MediaError, match=r"cannot write \.avi files; use one of \.mp4"):
        check_writable(tmp_path / "a.avi")
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "a.mp4", tmp_path / "file" / "deeper" / "a.mp4"):
        with pytest.raises(MediaError, match="is a file and not a folder"):
            check_writable(path)
    with pytest.raises(MediaError, match="a name without a suffix"):
        check_writable(tmp_path / "file")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_check_writable_notices_permissions(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MediaError, match="no permission"):
        check_writable(tmp_path / "a.mp4")


# --------------------------------------------------------------------------------------------------------- video in


def rotate_header(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write the rotation (a, b, c, d) into the track header of an mp4, as phones do."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("matrix, turns", [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotation_is_applied(tmp_path, matrix, turns):
    frames = torch.cat([flat((250, 250, 250), height=32, width=16), flat((5, 5, 5), height=32, width=32)], dim=2)
    path = write_video(tmp_path / "a.mp4", frames, 16)
    rotate_header(path, matrix)
    upright, _ = read_video(path)
    expected = torch.rot90(frames, turns, dims=(1, 2))
    assert upright.shape == expected.shape
    assert (upright.float() - expected.float()).abs().mean() < 4
    info = probe(path)
    assert (info.height, info.width) == expected.shape[1:3]


def test_read_and_probe(tmp_path):
    path = write_video(tmp_path / "a.webm", noise(7), 24)
    assert read_video(path, max_frames=4)[0].shape == (4, 32, 48, 3)
    info = probe(path)
    assert (info.width, info.height, info.fps, info.num_frames, info.codec, info.has_audio) == (48, 32, 24.0, 7, info.codec, False)
    assert info.codec.startswith(("vp9", "libvpx")) and info.duration == pytest.approx(7 / 24, abs=0.01)


def test_untagged_video_is_read_as_players_do(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "_BT709", {})
    monkeypatch.setattr(encoders, "Colorspace", type("Other", (), {"ITU709": encoders.Colorspace.ITU601}))
    path = write_video(tmp_path / "a.mp4", flat((200, 120, 40)), 16)
    assert (read_video(path)[0].float().mean((0, 1, 2)) - torch.tensor([200, 120, 40])).abs().max() < 2


def test_truncated_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", noise(20, 64, 64), 16)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(MediaError, match=r"a\.mp4"):
        read_video(path)


# ------------------------------------------------------------------------------------------------------------ names

TIME = datetime(2025, 7, 28, 9, 5, 3)


def name_of(prompt: str, **changes) -> str:
    return default_name(**{"task": "t2v-A14B", "width": 1280, "height": 720, "prompt": prompt, "time": TIME, **changes})


def test_the_published_pattern():
    assert name_of("a cat/dog runs") == "t2v-A14B_1280x720_1_a_cat_dog_runs_20250728_090503.mp4"
    assert name_of("x" * 80, ulysses_size=8, suffix=".webm") == f"t2v-A14B_1280x720_8_{'x' * 50}_20250728_090503.webm"
    assert name_of("") == "t2v-A14B_1280x720_1_20250728_090503.mp4"


@pytest.mark.parametrize(
    "prompt",
    ['a<b>c:d"e\\f|g?h*i', "line\nbreak\ttab\0nul", "../../etc/passwd", "\u202egpj.exe", "\udc80", "…", "🎬" * 60, "猫" * 60, " . "],
)
def test_names_are_safe(prompt, tmp_path):
    name = name_of(prompt)
    assert not set(name) & set('<>:"/\\|?*\n\t\0 ') and name.isprintable()
    assert len(name.encode()) <= 224 and name.endswith("_20250728_090503.mp4")
    write_video(tmp_path / name, flat((1, 2, 3), frames=1), 16)


def test_reserved_stems():
    assert safe_stem("con") == "_con" and safe_stem("LPT1.txt") == "_LPT1.txt" and safe_stem("console") == "console"
    assert safe_stem("name..") == "name" and safe_stem("...") == "_" and safe_stem("--help") == "_--help"


def test_unique_path(tmp_path):
    path = tmp_path / "a.b.mp4"
    assert unique_path(path) == path
    path.touch()
    assert unique_path(path).name == "a.b_2.mp4"
    (tmp_path / "a.b_2.mp4").touch()
    assert unique_path(path).name == "a.b_3.mp4"
    long = tmp_path / ("猫" * 83 + ".mp4")
    long.touch()
    unique_path(long).touch()
    assert write_video(tmp_path / ("犬" * 83 + ".mp4"), flat((1, 2, 3)), 16).exists()
