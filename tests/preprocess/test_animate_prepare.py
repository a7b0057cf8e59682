"""From a video and a picture to the folder of material: drawn videos, and a finder that finds what is red."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from preprocess.acting import RedFinder, posture, save_picture, save_video, scene
from test_media import rotate_header

from kinograph.cli.main import main
from kinograph.errors import CheckpointError, KinographError, MediaError, RequestError
from kinograph.media.audio import read_audio
from kinograph.media.video import read_frames, read_timeline, read_video
from kinograph.preprocess.animate import prepare
from kinograph.preprocess.animate.boxes import Person
from kinograph.preprocess.animate.material import NAMES
from kinograph.preprocess.animate.prepare import PrepareSettings, prepare_material
from kinograph.preprocess.animate.preview import write_preview

AREA = (128, 128)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return save_picture(tmp_path / "character.png", scene(50, width=128, height=128))


def made(video: Path, picture: Path, finder: RedFinder | None = None, **settings):
    chosen = PrepareSettings(**{"resolution_area": AREA, "fps": None, **settings})
    return prepare_material(video, picture, video.parent / "material", settings=chosen, finder=finder or RedFinder())


def videos(folder: Path) -> dict[str, torch.Tensor]:
    return {path.stem: read_video(path)[0] for path in sorted(folder.glob("*.mp4"))}


# --------------------------------------------------------------------------------------------------- the two modes


def test_animation(tmp_path, picture):
    video = save_video(tmp_path / "v.mp4", [scene(20 + 4 * i) for i in range(9)], fps=24, sound=0.5)
    material = made(video, picture)
    written = videos(material.folder)
    assert set(written) == {"src_pose", "src_face"}
    assert written["src_pose"].shape == (9, 128, 128, 3) and written["src_face"].shape == (9, 512, 512, 3)
    facts = json.loads((material.folder / "material.json").read_text())
    assert (facts["fps"], facts["num_frames"], facts["sound"], facts["frames_without_person"]) == (24, 9, "src_sound.m4a", 0)
    # 160x96 fits into 128x128 at 0.8 of its size, 26 rows down: joints are drawn where the figure is there.
    for i, pose in enumerate(written["src_pose"].numpy()):
        for joint in (0, 9, 10, 16):
            x, y = (np.array([20 + 4 * i, 16]) + posture()[joint, :2] * (40, 64)) * 0.8 + (0, 26)
            assert pose[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].max() > 100, (i, joint)
        assert pose[:24].max() < 30  # nothing above the fitted frame
    face = written["src_face"][4].float().mean(dim=(0, 1))
    assert face[0] > 180 > 60 > face[1]  # a crop of the red figure
    assert Image.open(material.folder / "src_ref.png").format == "PNG"
    assert len(read_audio(material.folder / "src_sound.m4a", 16000)) == pytest.approx(9 / 24 * 16000, abs=1100)


def test_replacement(tmp_path, picture):
    video = save_video(tmp_path / "v.mp4", [scene(20 + 4 * i) for i in range(6)])
    material = made(video, picture, replace=True, iterations=1, k=3)
    written = videos(material.folder)
    assert set(written) == {"src_pose", "src_face", "src_bg", "src_mask"}
    assert len({len(frames) for frames in written.values()}) == 1
    height, width = written["src_bg"].shape[1:3]
    assert (material.width, material.height) == (width, height) == (160, 96)
    for i, mask in enumerate(written["src_mask"][..., 0].numpy() > 127):
        assert mask[17:79, 21 + 4 * i : 59 + 4 * i].all() and not mask[:, : 16 + 4 * i].any() and not mask[:12].any()
        hole = written["src_bg"][i].numpy()[mask]
        assert np.median(hole) == 0
    assert material.sound is None and material.frames_with_empty_mask == 0


def test_retargeting_draws_the_characters_proportions(tmp_path, picture):
    tall = scene(None, width=128, height=128)
    tall[30:94, 44:70] = (220, 20, 20)  # narrower for its height: shorter arms
    video = save_video(tmp_path / "v.mp4", [scene(60)] * 3)
    material = made(video, save_picture(tmp_path / "tall.png", tall), retarget=True)
    pose = read_video(material.folder / "src_pose.mp4")[0][0].numpy().max(axis=2) > 80
    columns, rows = np.flatnonzero(pose.any(axis=0)), np.flatnonzero(pose.any(axis=1))
    assert abs(columns[0] - 44) <= 3 and abs(columns[-1] - 70) <= 3
    assert abs(rows[-1] - (30 + 0.98 * 64)) <= 3
    assert material.kept_limbs == ()


class Twitching(RedFinder):
    """Throws the left wrist across the picture in the third frame, and finds the right hand at the left elbow in the fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = -1

    def restart(self) -> None:
        self.frame = -1

    def observe(self, frame: np.ndarray, person: Person) -> np.ndarray:
        points = super().observe(frame, person)
        self.frame += 1
        if self.frame == 2:
            points[9, :2] = (2, 94)
        if self.frame == 3:
            points[112:, :2] += points[7, :2] - points[10, :2]
        return points


def test_what_fails_in_a_frame_is_told(tmp_path, picture):
    video = save_video(tmp_path / "v.mp4", [scene(60 + i) for i in range(8)])
    material = made(video, picture, Twitching(), retarget=True)
    assert material.kept_limbs == () and material.failed_limbs == {"left forearm": 1} and material.hands_left_out == {"right hand": 1}
    assert "left forearm kept the plain scaled pose in 1 of 8 frames" in material.notes
    assert "right hand was left out in 1 of 8 frames, where it was found too far from its wrist" in material.notes
    assert json.loads((material.folder / "material.json").read_text())["failed_limbs"] == {"left forearm": 1}
    poses = read_video(material.folder / "src_pose.mp4")[0].numpy().max(axis=3) > 80
    assert not poses[2, 110:, :40].any()  # where the wrist was thrown


def test_exchanged_sides_are_told(tmp_path, picture):
    class Exchanging(Twitching):
        def observe(self, frame: np.ndarray, person: Person) -> np.ndarray:
            points = RedFinder.observe(self, frame, person)
            self.frame += 1
            if self.frame in (3, 4):
                points[[5, 6, 7, 8, 9, 10]] = points[[6, 5, 8, 7, 10, 9]]
            return points

    material = made(save_video(tmp_path / "v.mp4", [scene(60)] * 8), picture, Exchanging(), retarget=True)
    assert material.notes == ("left and right arms were exchanged in 2 of 8 frames, and put back",)


def test_edited_pictures_are_what_is_measured(tmp_path, picture):
    class Widener:
        prompts: list[str] = []  # noqa: RUF012

        def edit(self, pixels, prompt):
            self.prompts.append(prompt)
            return pixels

    video = save_video(tmp_path / "v.mp4", [scene(60)])
    settings = PrepareSettings(resolution_area=AREA, retarget=True, use_flux=True)
    material = prepare_material(video, picture, tmp_path / "out", settings=settings, finder=RedFinder(), editor=Widener())
    assert {"refer_edit.png", "tpl_edit.png"} <= {path.name for path in material.folder.iterdir()}
    assert len(Widener.prompts) == 2 and "Hands are visible" in Widener.prompts[0]


# --------------------------------------------------------------------------------------------- gaps, several people


def test_what_a_frame_lacks_its_neighbours_give(tmp_path, picture):
    places = [20, 24, None, None, 36, 40, 44, 48]
    video = save_video(tmp_path / "v.mp4", [scene(x) for x in places])
    material = made(video, picture, replace=True, iterations=0)
    assert (material.frames_without_person, material.frames_without_face, material.frames_with_empty_mask) == (2, 2, 2)
    assert any("2 of 8 frames" in note for note in material.notes)
    masks = read_video(material.folder / "src_mask.mp4")[0][..., 0].numpy() > 127
    assert masks.reshape(8, -1).any(axis=1).all() and np.array_equal(masks[2], masks[1])
    poses = read_video(material.folder / "src_pose.mp4")[0].numpy().max(axis=3) > 80
    starts = [int(np.flatnonzero(pose.any(axis=0))[0]) for pose in poses]
    assert starts == sorted(starts) and starts[1] < starts[2] < starts[4]  # between its neighbours


def test_no_face_and_no_mask_anywhere(tmp_path, picture):
    video = save_video(tmp_path / "v.mp4", [scene(20)] * 2)
    material = made(video, picture, RedFinder(faces=False))
    assert material.frames_without_face == 2 and read_video(material.folder / "src_face.mp4")[0].max() < 8
    with pytest.raises(RequestError, match="could not be cut out in any frame"):
        made(video, picture, RedFinder(masks=False), replace=True)


@pytest.mark.parametrize("choice, at", [({}, 100), ({"person": 1}, 10), ({"click": (20.0, 40.0)}, 10)])
def test_one_of_two_people_is_followed(tmp_path, picture, choice, at):
    def two(i: int) -> np.ndarray:
        frame = scene(100 + i)
        frame[30:80, 10 + i : 35 + i] = (220, 20, 20)
        return frame

    video = save_video(tmp_path / "v.mp4", [two(i) for i in range(9)])
    material = made(video, picture, replace=True, iterations=0, **choice)
    pose = read_video(material.folder / "src_pose.mp4")[0][8].numpy().max(axis=2) > 80
    assert abs(np.flatnonzero(pose.any(axis=0))[0] - (at + 8)) <= 3


class Nearsighted(RedFinder):
    """Sees nobody who is less than 40 pixels high."""

    def find(self, frame: np.ndarray) -> list[Person]:
        return [person for person in super().find(frame) if person.y2 - person.y1 >= 40]


def test_people_are_looked_for_in_frames_of_the_videos_size(tmp_path, picture):
    video = save_video(tmp_path / "v.mp4", [scene(20 + 4 * i) for i in range(6)])
    material = made(video, picture, Nearsighted(), replace=True, iterations=0, resolution_area=(48, 80), click=(30.0, 40.0))
    assert (material.width, material.height) == (80, 48) and material.frames_without_person == 0
    written = videos(material.folder)
    for i, mask in enumerate(written["src_mask"][..., 0].numpy() > 127):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert abs(columns[0] - (10 + 2 * i)) <= 1 and abs(columns[-1] - (29 + 2 * i)) <= 1
        assert abs(rows[0] - 8) <= 1 and abs(rows[-1] - 39) <= 1
        pose = written["src_pose"][i].numpy().max(axis=2) > 80
        assert abs(np.flatnonzero(pose.any(axis=0))[0] - (10 + 2 * i)) <= 2


def test_the_character_is_looked_for_in_a_larger_picture(tmp_path):
    video = save_video(tmp_path / "v.mp4", [scene(60)] * 2)
    picture = save_picture(tmp_path / "wide.png", scene(90, width=200, height=96))
    material = made(video, picture, Nearsighted(), retarget=True, resolution_area=(96, 48))
    assert (material.width, material.height) == (96, 32)  # the figure is 21 pixels high there
    pose = read_video(material.folder / "src_pose.mp4")[0][0].numpy().max(axis=2) > 80
    # 200x96 comes to 66x32 there, 15 columns in.
    columns = np.flatnonzero(pose.any(axis=0))
    assert abs(columns[0] - (15 + 0.33 * 90)) <= 2 and abs(columns[-1] - (15 + 0.33 * 130)) <= 2


def test_a_video_too_thin_for_its_area(tmp_path, picture):
    video = save_video(tmp_path / "v.mp4", [scene(20, width=640, height=82)] * 2)
    with pytest.raises(RequestError, match="640x82 is too thin for an area of 1024 pixels"):
        made(video, picture, replace=True, resolution_area=(32, 32))


def test_people_that_are_not_there(tmp_path, picture):
    video = save_video(tmp_path / "v.mp4", [scene(20)] * 2)
    with pytest.raises(RequestError, match=r"there is no person 3 in .*v.mp4: 1 found"):
        made(video, picture, person=3)
    with pytest.raises(RequestError, match=r"the point 150,5 is on nobody .* people are at 20,16,60,80"):
        made(video, picture, click=(150.0, 5.0))


# --------------------------------------------------------------------------------------------------------- bad input


def test_nobody(tmp_path, picture):
    video = save_video(tmp_path / "v.mp4", [scene(None)] * 3)
    with pytest.raises(RequestError, match=r"no person was found in .*v.mp4"):
        made(video, picture)
    empty = save_picture(tmp_path / "empty.png", scene(None))
    with pytest.raises(RequestError, match=r"no person was found in the reference picture .*empty.png"):
        made(save_video(tmp_path / "w.mp4", [scene(20)]), empty)
    assert not (tmp_path / "material").exists() and not list(tmp_path.glob(".*"))


def test_one_frame_and_none(tmp_path, picture):
    material = made(save_video(tmp_path / "v.mp4", [scene(20)]), picture, fps=30)
    assert material.num_frames == 1 and {len(frames) for frames in videos(material.folder).values()} == {1}
    cut = tmp_path / "cut.mp4"
    cut.write_bytes((tmp_path / "v.mp4").read_bytes()[:300])
    for broken in (cut, tmp_path / "nothing.mp4", picture.parent):
        with pytest.raises(MediaError, match=broken.name):
            made(broken, picture)
    with pytest.raises(MediaError, match=r"cannot read .*cut.mp4 as a picture"):
        made(tmp_path / "v.mp4", cut)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"use_flux": True}, "add --retarget_flag"),
        ({"retarget": True, "replace": True}, "leave one of the two flags out"),
        ({"fps": 0}, "fps must be above 0"),
        ({"k": 0}, "k must be at least 1; got 0"),
        ({"models": "best"}, "no models called 'best'"),
    ],
)
def test_settings_that_contradict(settings, message):
    with pytest.raises(RequestError, match=message):
        PrepareSettings(**settings)


def test_checkpoints_that_are_missing(tmp_path, picture):
    video = save_video(tmp_path / "v.mp4", [scene(20)])
    for settings, kind, message in (
        ({"models": "published"}, RequestError, "published models need a folder of weights"),
        ({"models": "published", "process_checkpoint": tmp_path / "no"}, RequestError, "there is no folder"),
        ({"models": "published", "process_checkpoint": tmp_path}, CheckpointError, "person detector is missing"),
    ):
        with pytest.raises(kind, match=message):
            prepare_material(video, picture, tmp_path / "out", settings=PrepareSettings(**settings))
    flux = PrepareSettings(retarget=True, use_flux=True, process_checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"FLUX.1-Kontext-dev is missing"):
        prepare_material(video, picture, tmp_path / "out", settings=flux, finder=RedFinder())


# ------------------------------------------------------------------------------------------------------- the folder


def test_a_failure_leaves_the_old_material(tmp_path, picture, monkeypatch):
    video = save_video(tmp_path / "v.mp4", [scene(20)] * 3)
    first = made(video, picture)
    assert {path.name for path in first.folder.iterdir()} < set(NAMES)
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "draw_skeleton", fails)
    with pytest.raises(KinographError, match="the disk is full"):
        made(video, picture, replace=True)
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before
    monkeypatch.undo()
    made(video, picture, replace=True)
    assert (first.folder / "src_mask.mp4").exists() and not list(tmp_path.glob(".*"))
    (first.folder / "letter.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"holds other files than material \(letter.txt\)"):
        made(video, picture)


def test_preview(tmp_path, picture):
    video = save_video(tmp_path / "v.mp4", [scene(20 + i) for i in range(8)])
    folder = made(video, picture, replace=True).folder
    with Image.open(write_preview(folder, tmp_path / "sheet.png", rows=3)) as sheet:
        assert sheet.height == 3 * 200 and sheet.width > 5 * 180
        assert np.asarray(sheet)[100, 30].tolist() == pytest.approx([40, 120, 60], abs=12)  # the source's room comes first
    with pytest.raises(MediaError, match=r"no readable material.json"):
        write_preview(tmp_path, tmp_path / "sheet.png")


# ------------------------------------------------------------------------------------------------- frames by time


def test_uneven_frames_are_taken_by_time(tmp_path, picture):
    times = [0, 33, 66, 100, 500, 533, 566, 600]
    video = save_video(tmp_path / "v.mp4", [scene(20 + 10 * i) for i in range(8)], times=times)
    timeline = read_timeline(video)
    np.testing.assert_allclose(timeline.times, np.array(times) / 1000, atol=1e-3)
    material = made(video, picture, fps=10, replace=True, iterations=0)
    masks = read_video(material.folder / "src_mask.mp4")[0][..., 0].numpy() > 127
    starts = [int(np.flatnonzero(mask.any(axis=0))[0]) for mask in masks]
    assert [round((start - 20) / 10) for start in starts[:6]] == [0, 3, 3, 3, 3, 4]  # frame 3 is held for 0.4 s


def test_a_chosen_frame_may_come_twice(tmp_path):
    video = save_video(tmp_path / "v.mp4", [scene(20 + 10 * i) for i in range(4)])
    frames = list(read_frames(video, [0, 0, 2]))
    assert len(frames) == 3 and np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[1], frames[2])
    with pytest.raises(MediaError, match="ended after 4 frames"):
        list(read_frames(video, [3, 9]))


def test_video_that_lies_on_its_side(tmp_path, picture):
    video = save_video(tmp_path / "v.mp4", [np.ascontiguousarray(np.rot90(scene(20)))] * 2)
    rotate_header(video, (0, 1, -1, 0))  # a quarter turn clockwise makes it upright
    material = made(video, picture, replace=True, iterations=0, click=(30.0, 40.0))
    assert (material.width, material.height) == (160, 96)
    mask = read_video(material.folder / "src_mask.mp4")[0][0, ..., 0].numpy() > 127
    assert mask[20:76, 24:56].all() and not mask[:, 64:].any()


def test_sound_keeps_its_place(tmp_path, picture):
    video = save_video(tmp_path / "v.mp4", [scene(20)] * 20, fps=20, sound=0.6)
    wave = read_audio(made(video, picture, fps=10).folder / "src_sound.m4a", 16000).numpy()
    original = read_audio(video, 16000).numpy()[: len(wave)]
    assert np.abs(wave[4000:9000]).max() > 0.3 and np.abs(wave[11000:15000]).max() < 0.02
    best = max(range(-15, 16), key=lambda shift: float(wave[4000:9000] @ original[4000 + shift : 9000 + shift]))
    assert abs(best) <= 1  # samples of 1/16000 s


# ----------------------------------------------------------------------------------------------------- command line


def test_command(tmp_path, picture, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "load_finder", lambda *_, **__: RedFinder())
    video = save_video(tmp_path / "v.mp4", [scene(20 + i) for i in range(4)], fps=12)
    flags = ["--video_path", str(video), "--refer_path", str(picture), "--save_path", str(tmp_path / "out"), "--resolution_area", "128"]
    flags.append("96")
    assert main(["preprocess", *flags, "--replace_flag", "--fps", "-1", "--w_len", "4", "--h_len", "4", "--preview"]) == 0
    assert "written: " in capsys.readouterr().out and (tmp_path / "out" / "preview.png").exists()
    assert main(["preprocess", *flags, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["mode"] == "animate" and facts["fps"] == 30 and facts["num_frames"] == 10


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "lacks --video_path and --refer_path and --save_path"),
        (["--resolution_area", "1280"], "--resolution_area needs 2 values"),
        (["--click", "here"], "--click"),
        (["--video_path", "a", "--refer_path", "b", "--save_path", "c", "--use_flux"], "add --retarget_flag"),
    ],
)
def test_command_errors(flags, message, capsys):
    assert main(["preprocess", *flags]) == 2
    assert message in capsys.readouterr().err
