"""`kinograph animate`: material made once and kept by content, a sheet to look at first, and whole videos, with a tiny model.

The preparation itself has tests of its own; here a stand-in writes the folder.
"""
from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from animate_folder import drawn, write_material
from PIL import Image

from kinograph import media
from kinograph.cli.main import main
from kinograph.config import ModelSpec
from kinograph.recipe import read_recipe

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Those that the command fills, by the names of the real ones."""

    resolution_area: tuple[int, int] = (1280, 720)
    fps: float | None = 30
    replace: bool = False
    retarget: bool = False
    use_flux: bool = False
    iterations: int = 3
    k: int = 7
    w_len: int = 1
    h_len: int = 1
    person: int = 0
    click: tuple[float, float] | None = None
    models: str = "mediapipe"
    process_checkpoint: Path | None = None


@dataclass
class Preparation:
    """Stands in for the preparation, and remembers how it was called."""

    calls: list[Settings] = field(default_factory=list)
    sheets: list[Path] = field(default_factory=list)

    def prepare_material(
        self, video: Path, image: Path, folder: Path, *, settings: Settings, on_progress: Callable[[str, int, int], None] | None = None
    ) -> None:
        assert video.is_file() and image.is_file() and not folder.exists()
        self.calls.append(settings)
        if on_progress is not None:
            on_progress("looking for people", 0, 11)
            on_progress("looking for people", 11, 11)
        record = {"fps": 24.0, "sound": None, "num_frames": 11, "notes": ["no face was seen in 2 of 11 frames"]}
        write_material(folder, frames=11, size=(64, 48), fps=24, replace=settings.replace, record=record)

    def write_preview(self, folder: Any, path: Any) -> None:
        assert (Path(folder) / "src_pose.mp4").is_file()
        self.sheets.append(Path(path))
        Image.new("RGB", (8, 8)).save(path)


@pytest.fixture
def preparation(monkeypatch: pytest.MonkeyPatch) -> Preparation:
    made = Preparation()
    contents: dict[str, dict[str, Any]] = {
        "prepare": {"prepare_material": made.prepare_material, "PrepareSettings": Settings},
        "preview": {"write_preview": made.write_preview},
    }
    for name, values in contents.items():
        module: Any = ModuleType(f"kinograph.preprocess.animate.{name}")
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


@pytest.fixture
def command(preparation: Preparation, tiny_animate: ModelSpec, tiny_animate_folder: Path, in_tmp: Path) -> list[str]:
    media.write_video("dance.mp4", drawn(1, 11, 48, 64), 24)
    Image.fromarray(drawn(4, 1, 40, 30)[0].numpy()).save("hero.png")
    return [
        "animate", "--video", "dance.mp4", "--image", "hero.png", "--task", tiny_animate.name, "--ckpt_dir", str(tiny_animate_folder),
        "--cache_dir", "cache", "--sample_steps", "1", "--seed", "3", "--quiet",
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["animate", "replace"])
def test_one_command_from_raw_material(mode: str, command: list[str], preparation: Preparation, capsys: Capture) -> None:
    assert main([*command, "--mode", mode, "-o", "out.mp4"]) == 0
    found = media.probe("out.mp4")
    assert (found.fps, media.count_frames("out.mp4")) == (24, 11)
    assert read_recipe("out.mp4").request["mode"] == mode
    (settings,) = preparation.calls
    assert (settings.fps, settings.replace, settings.resolution_area) == (None, mode == "replace", (96, 64))
    assert "note: no face was seen in 2 of 11 frames" in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_material_is_kept_by_content(command: list[str], preparation: Preparation, capsys: Capture) -> None:
    sheet = [*command, "--preview", "sheet.png"]
    assert main(sheet) == 0 and main(sheet) == 0
    assert len(preparation.calls) == 1
    Path("dance.mp4").rename("same.mp4")
    assert main([word.replace("dance.mp4", "same.mp4") for word in sheet]) == 0
    assert len(preparation.calls) == 1
    assert main([*(word.replace("dance.mp4", "same.mp4") for word in sheet), "--iterations", "1"]) == 0
    Image.new("RGB", (30, 40), "red").save("hero.png")
    assert main([word.replace("dance.mp4", "same.mp4") for word in sheet]) == 0
    assert [settings.iterations for settings in preparation.calls] == [3, 1, 3]


def test_broken_material_is_made_again(command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert main([*command, "--preview", "sheet.png"]) == 0
    (pose,) = Path("cache").glob("*/src_pose.mp4")
    pose.write_bytes(b"")
    again = SimpleNamespace(folder=None)

    def prepare(video: Path, image: Path, folder: Path, **options: object) -> None:
        again.folder = folder
        write_material(folder / "new", frames=3)
        (folder / "new/src_pose.mp4").replace(folder / "src_pose.mp4")

    monkeypatch.setattr(sys.modules["kinograph.preprocess.animate.prepare"], "prepare_material", prepare)
    assert main([*command, "--preview", "sheet.png"]) == 0
    assert again.folder == pose.parent


def test_a_sheet_alone_makes_no_video(command: list[str], preparation: Preparation, capsys: Capture) -> None:
    assert main([*command, "--preview", "sheet.png"]) == 0
    assert preparation.sheets == [Path("sheet.png")] and not list(Path().glob("*.mp4"))[1:]
    assert "go on with the same command and -o FILE" in capsys.readouterr().out


def test_a_sheet_and_a_video(command: list[str], preparation: Preparation, capsys: Capture) -> None:
    assert main([*command, "--preview", "sheet.png", "-o", "out.mp4"]) == 0
    assert preparation.sheets and Path("out.mp4").is_file()


def test_flags_reach_the_preparation(command: list[str], preparation: Preparation, capsys: Capture) -> None:
    flags = ["--click", "12,30.5", "--size", "64*48", "--fps", "12", "--k", "5", "--ckpt_path", "process", "--retarget_flag"]
    assert main([*command, "--preview", "sheet.png", *flags]) == 0
    (settings,) = preparation.calls
    assert settings == Settings(
        click=(12, 30.5), resolution_area=(64, 48), fps=12, k=5, models="published", process_checkpoint=Path("process"), retarget=True
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--video", "none.mp4"], r"there is no video none.mp4"),
        (["--image", "none.png"], r"there is no picture none.png"),
        (["--click", "12"], r"--click must be X,Y in pixels of the video, such as 640,360; got '12'"),
        (["--click", "1,2", "--person", "1"], r"--click and --person both choose the person"),
        (["--mode", "swap"], r"--mode must be one of animate, replace"),
        (["--task", "ti2v-nano"], r"ti2v-nano does not animate characters; choose one of animate-14B"),
        (["-o", "taken.mp4"], r"taken.mp4 exists already; add --overwrite"),
        (["-o", "clip.avi"], r"cannot write .avi files"),
        (["--ckpt_dir", "nowhere"], r"there is no checkpoint folder nowhere"),
        (["--prompts", "a.txt"], r"there is no flag --prompts"),
    ],
)
def test_refused_before_anything_is_prepared(
    change: list[str], sentence: str, command: list[str], preparation: Preparation, capsys: Capture
) -> None:
    Path("taken.mp4").write_bytes(b"precious")
    assert main([*command, "-o", "out.mp4", *change]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert preparation.calls == []


@pytest.mark.parametrize("missing", ["--video", "--image"])
def test_both_inputs_are_needed(missing: str, command: list[str], preparation: Preparation, capsys: Capture) -> None:
    place = command.index(missing)
    assert main(command[:place] + command[place + 2 :]) == 2
    assert "For example: kinograph animate --video dance.mp4" in capsys.readouterr().err
