"""The task of animation: what is refused before any weight, what the plan says, and which frames each clip is given."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from animate_folder import box, drawn, write, write_material

from kinograph.config import ANIMATE_14B, tiny
from kinograph.errors import KinographError
from kinograph.media import FrameReader, count_frames, read_video
from kinograph.requests import Animate
from kinograph.tasks import animate
from kinograph.tasks.animate_material import find_material

SPEC = tiny(ANIMATE_14B)  # faces of 16 pixels, clips of 9 frames


def plan(folder: Path, **settings: object) -> animate.Plan:
    return animate.plan(Animate(material=folder, **settings), SPEC)


def refusal(folder: Path | None, **settings: object) -> str:
    with pytest.raises(KinographError) as error:
        plan(folder, **settings)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------- refusals


def test_no_material() -> None:
    assert re.search(r"material made beforehand; give its folder with --src_root_path DIR .*kinograph preprocess", refusal(None))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    sentence = refusal(tmp_path / "none")
    assert re.search(r"none does not exist; make it with: kinograph preprocess --video_path VIDEO .* --save_path .*none$", sentence)


@pytest.mark.parametrize("name", ["src_pose.mp4", "src_face.mp4", "src_ref.png"])
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    folder = write_material(tmp_path)
    (folder / name).unlink()
    assert re.search(rf"lacks {name}, which animation needs; make them with: kinograph preprocess", refusal(folder))


def test_replacement_needs_more(tmp_path: Path) -> None:
    folder = write_material(tmp_path)
    assert re.search(r"lacks src_bg.mp4 and src_mask.mp4, which replacement needs; .* --replace_flag$", refusal(folder, mode="replace"))


@pytest.mark.parametrize("name", ["src_face", "src_bg", "src_mask"])
def test_videos_of_different_length(name: str, tmp_path: Path) -> None:
    folder = write_material(tmp_path, replace=True)
    side = (16, 16) if name == "src_face" else (48, 64)
    (folder / f"{name}.mp4").unlink()
    write(folder / f"{name}.mp4", drawn(5, 12, *side), 25)
    assert re.search(rf"differ in length \(src_pose.mp4 13, .*{name}.mp4 12", refusal(folder, mode="replace"))


def test_a_video_without_frames(tmp_path: Path) -> None:
    folder = write_material(tmp_path)
    (folder / "src_pose.mp4").write_bytes(b"")
    assert re.search(r"src_pose.mp4 is empty", refusal(folder))


def test_sizes_the_model_cannot_do(tmp_path: Path) -> None:
    assert re.search(r"is 66\*48; the model needs a width that is a multiple of 16", refusal(write_material(tmp_path, size=(66, 48))))


def test_faces_of_another_size(tmp_path: Path) -> None:
    assert re.search(r"src_face.mp4 is 24\*24; the model needs 16\*16", refusal(write_material(tmp_path, face_size=24)))


def test_larger_faces_are_averaged(tmp_path: Path) -> None:
    folder = write_material(tmp_path, face_size=64, suffix=".mkv")
    material = find_material(folder, replace=False, face_size=16, size_multiple=(16, 16))
    (faces,) = animate._faces(FrameReader(material.face), list(range(13)), 16)
    whole, _ = read_video(material.face)
    cells = whole.float().view(13, 16, 4, 16, 4, 3).mean(dim=(2, 4)) / 127.5 - 1
    assert torch.allclose(faces, cells.permute(3, 0, 1, 2), atol=1e-5)


def test_a_background_of_another_size(tmp_path: Path) -> None:
    folder = write_material(tmp_path, replace=True)
    (folder / "src_bg.mp4").unlink()
    write(folder / "src_bg.mp4", drawn(3, 13, 64, 64), 25)
    assert re.search(r"src_bg.mp4 is 64\*64 and src_pose.mp4 64\*48; they must be of one size", refusal(folder, mode="replace"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"overlap": 77}, r"overlap must be 1 or 5, .*; got 77"),
        ({"overlap": 0}, r"overlap must be 1 or 5, .*; got 0"),
        ({"mode": "swap"}, r"mode must be one of animate, replace; got 'swap'"),
        ({"num_frames": 8}, r"num_frames must be 4n\+1 .* got 8"),
        ({"num_frames": 5, "overlap": 5}, r"num_frames must be more than the 5 that a clip takes over .*; got 5"),
        ({"num_frames": 1}, r"num_frames must be more than the 1 that a clip takes over"),
        ({"num_frames": -3}, r"num_frames must be more than .*; got -3"),
    ],
)
def test_settings_the_model_cannot_do(settings: dict, sentence: str, tmp_path: Path) -> None:
    assert re.search(sentence, refusal(write_material(tmp_path), **settings))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"material.json is damaged"),
        ("[]", r"material.json is damaged"),
        ('{"fps": 0}', r"material.json has 0.0 frames per second; it must be above 0"),
        ('{"fps": "fast"}', r"material.json is damaged"),
        ('{"sound": "gone.m4a"}', r"material.json names the sound gone.m4a, which is not there"),
    ],
)
def test_a_damaged_record(text: str, sentence: str, tmp_path: Path) -> None:
    folder = write_material(tmp_path)
    (folder / "material.json").write_text(text)
    assert re.search(sentence, refusal(folder))


def test_an_unreadable_reference(tmp_path: Path) -> None:
    folder = write_material(tmp_path)
    (folder / "src_ref.png").write_bytes(b"not a picture")
    assert "src_ref.png" in refusal(folder)


# ----------------------------------------------------------------------------------------------------------- plans


def test_the_material_decides(tmp_path: Path) -> None:
    made = plan(write_material(tmp_path, frames=13, size=(64, 48), fps=25))
    assert (made.width, made.height, made.fps, made.total_frames) == (64, 48, 25, 13)
    assert (made.num_frames, made.num_clips, made.carry_frames, made.one_noise_stream) == (9, 2, 1, True)
    assert made.latent_shape == (16, 1 + 3, 6, 8)  # the reference picture, then the clip


@pytest.mark.parametrize(("frames", "overlap", "clips"), [(1, 1, 1), (1, 5, 1), (9, 1, 1), (10, 1, 2), (9, 5, 1), (14, 5, 3)])
def test_how_many_clips(frames: int, overlap: int, clips: int, tmp_path: Path) -> None:
    made = plan(write_material(tmp_path, frames=frames), overlap=overlap)
    assert (made.total_frames, made.num_clips) == (frames, clips)


def test_the_recorded_rate_counts(tmp_path: Path) -> None:
    folder = write_material(tmp_path, fps=30, record={"fps": 29.97, "sound": None, "num_frames": 13})
    assert plan(folder).fps == 29.97
    assert plan(folder, fps=12).fps == 12


def test_a_size_is_ignored_with_a_word(tmp_path: Path) -> None:
    folder = write_material(tmp_path)
    assert not any("ignored" in warning for warning in plan(folder).warnings)
    made = plan(folder, width=1280, height=720)
    assert (made.width, made.height) == (64, 48)
    assert any("the size 1280*720 is ignored: frames are as large as the material, 64*48" in warning for warning in made.warnings)


def test_sound_at_another_speed_is_left_out_with_a_word(tmp_path: Path) -> None:
    folder = write_material(tmp_path, record={"fps": 25, "sound": "src_sound.m4a"})
    (folder / "src_sound.m4a").write_bytes(b"sound")
    assert not any("sound" in warning for warning in plan(folder).warnings)
    assert any("the sound is left out: at 12 frames a second" in warning for warning in plan(folder, fps=12).warnings)


def test_lossless_files_count_first(tmp_path: Path) -> None:
    folder = write_material(tmp_path, replace=True)
    write(folder / "src_mask.mkv", box(13, 48, 64), 25)
    found = find_material(folder, replace=True, face_size=16, size_multiple=(16, 16))
    assert found.mask is not None and found.mask.name == "src_mask.mkv"
    assert found.pose.name == "src_pose.mp4"


# ---------------------------------------------------------------------------------------------------------- frames


def test_past_the_end_a_video_is_played_backwards() -> None:
    assert animate.frame_numbers(8, 9, 13) == [8, 9, 10, 11, 12, 11, 10, 9, 8]
    assert animate.frame_numbers(0, 5, 1) == [0] * 5


def test_masks_survive_compression(tmp_path: Path) -> None:
    frames = box(5, 48, 64)
    write(tmp_path / "mask.mp4", frames, 25)
    found = animate._person(FrameReader(tmp_path / "mask.mp4"), list(range(5)))
    assert found is not None and torch.equal(found, (frames[..., 0] > 0).float())


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_frames_by_number(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, drawn(1, 13, 48, 64), 25)
    assert count_frames(path) == 13
    whole, _ = read_video(path)
    reader = FrameReader(path)
    for numbers in ([0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 11, 10, 9, 8], [2, 1, 0]):  # the last one begins anew
        assert torch.equal(reader.read(numbers), whole[numbers])
    with pytest.raises(KinographError, match="ends after 13 frames"):
        reader.read([12, 13])
