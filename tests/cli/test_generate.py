"""`kinograph generate`: what is refused and how, before any weight is read; and a whole run with a tiny model."""
from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kinograph import media, pipeline
from kinograph.cli import progress
from kinograph.cli.main import main
from kinograph.config import ModelSpec
from kinograph.errors import MediaError, RuntimeSetupError
from kinograph.recipe import read_recipe
from kinograph.runtime.placement import Components

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> None:
    """Everything in a test with this must be refused before the weights are looked at."""

    def load(*args: object, **options: object) -> None:
        raise AssertionError("weights were about to be loaded")

    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "DASH_API_KEY", "DASH_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pipeline, "load", load)


def refusal(argv: list[str], capsys: Capture) -> str:
    """The one sentence that `kinograph generate ...` is refused with."""
    assert main(["generate", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("kinograph: ")
    return lines[0].removeprefix("kinograph: ")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], r"there is no prompt; say what .* kinograph generate "),
        ([""], r"the prompt is empty; say what"),
        (["  "], r"the prompt is empty; say what"),
        (["x", "--task", "t2v-a14"], r"the model 't2v-a14' is not known \(did you mean t2v-A14B\?\); choose one of t2v-A14B, "),
        (["x", "--size", "250*256"], r"multiple of 32.*got 250\*256 \(nearest: 256\*256\)"),
        (["x", "--size", "0*0"], r"width \(--size\) must be a whole number at least 1; got 0"),
        (["x", "--frame_num", "80"], r"num_frames \(--frame_num\) must be 4n\+1 .* got 80 \(nearest: 77, 81\)"),
        (["x", "--frame_num", "-3"], r"num_frames \(--frame_num\) must be a whole number at least 1; got -3"),
        (["x", "--sample_steps", "0"], r"num_steps \(--sample_steps\) must be a whole number from 1 to 1000; got 0"),
        (["x", "--sample_shift", "0"], r"shift \(--sample_shift\) must be a positive number; got 0"),
        (["x", "--sample_solver", "heun"], r"solver \(--sample_solver\) 'heun' is not known; choose one of unipc"),
        (["x", "--sample_guide_scale", "high_noise=4"], r"ti2v-nano has no expert 'high_noise' to guide; its experts are all_noise"),
        (["x", "--base_seed", "one"], r"--base_seed must be a whole number, or -1 to draw one; got 'one'"),
        (["x", "--fps", "0"], r"fps must be above 0 and at most 240; got 0"),
        (["x", "--num_clip", "0"], r"num_clips \(--num_clip\) must be a whole number at least 1; got 0"),
        (["x", "--noise_device", "tpu"], r"noise_device must be 'cpu' .* or 'cuda'; got 'tpu'"),
        (["x", "--image", "none.png"], r"there is no picture none.png"),
        (["x", "--task", "i2v-A14B"], r"i2v-A14B animates a picture; give one with --image FILE"),
        (["x", "--task", "t2v-A14B", "--image", "a.png"], r"--image is for .*i2v-A14B, .*; t2v-A14B does not take it: leave it out"),
        (["x", "--last_image", "a.png"], r"--last_image is for .*i2v-A14B.*; ti2v-nano does not take it"),
        (["x", "--audio", "talk.wav"], r"--audio is for s2v-14B, s2v-nano; ti2v-nano does not take it"),
        (["x", "--replace_flag"], r"--replace_flag is for animate-14B, animate-nano; ti2v-nano does not take it"),
        (["x", "--dit_fsdp"], r"--dit_fsdp needs several GPUs and this version uses one; leave it out"),
        (["x", "--t5_fsdp"], r"--t5_fsdp needs several GPUs"),
        (["x", "--ulysses_size", "8"], r"this version runs on one GPU; got --ulysses_size 8"),
        (["x", "--prompt_extend_model", "y"], r"--prompt_extend_model says how to extend the prompt, .* --use_prompt_extend; add it"),
        (["x", "--use_prompt_extend", "--prompt_extend_method", "openai"], r"the method openai needs a key; set OPENAI_API_KEY"),
        (["x", "--preset", "3-step"], r"the preset '3-step' is not known; choose one of 4-step, 4-step-motion"),
        (["x", "--lora", "a.safetensors:strong"], r"--lora must be FILE, FILE:0.8, .*; got 'a.safetensors:strong'"),
        (["x", "--lora", "none.safetensors"], r"none.safetensors"),
        (["x", "--output_dir", "here", "-o", "a.mp4"], r"--save_file names the whole path and --output_dir the folder"),
        (["x", "--ckpt_dir", "nowhere"], r"the checkpoint folder 'nowhere' does not exist; check --ckpt_dir"),
        (["x", "--ckpt_dir", "."], r"\. does not tell which model it is of; say with --task"),
        (["x", "-o", "clip.avi"], r"cannot write .avi files; use one of .mp4"),
        (["x", "-o", "clip.png"], r"clip.png holds one frame and the video has 17; use --frame_num 1"),
        (["x", "-o", "taken.mp4"], r"taken.mp4 exists already; add --overwrite to replace it"),
        (["x", "-o", "taken.mp4/clip.mp4"], r"a part of that path is a file and not a folder"),
    ],
)
def test_refused_in_one_sentence(argv: list[str], sentence: str, no_weights: None, capsys: Capture) -> None:
    Path("taken.mp4").write_bytes(b"precious")
    assert re.search(sentence, refusal(argv, capsys))
    assert Path("taken.mp4").read_bytes() == b"precious"


def test_torchrun_is_refused(no_weights: None, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert "torchrun started 8" in refusal(["x"], capsys)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"version https://git-lfs.github.com/spec/v1\n"])
def test_unreadable_pictures_are_refused(content: bytes, no_weights: None, capsys: Capture) -> None:
    Path("a.png").write_bytes(content)
    assert "a.png" in refusal(["x", "--image", "a.png"], capsys)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere; Windows has other rights")
def test_unwritable_folder_is_refused(no_weights: None, capsys: Capture) -> None:
    Path("closed").mkdir(mode=0o500)
    assert "no permission to write closed" in refusal(["x", "-o", "closed/clip.mp4"], capsys)


def test_published_weights_need_a_folder(in_tmp: Path, capsys: Capture) -> None:
    assert "Wan-AI/Wan2.2-T2V-A14B" in refusal(["x", "--task", "t2v-A14B"], capsys)


# ------------------------------------------------------------------------------------------------------ whole runs


@pytest.fixture
def command(tiny_spec: ModelSpec, tiny_folder: Path, in_tmp: Path) -> list[str]:
    return ["generate", "a red ball", "--task", tiny_spec.name, "--ckpt-dir", str(tiny_folder), "--sample-steps", "2", "--seed", "3"]


def test_a_run_makes_the_published_name_and_says_what_it_took(command: list[str], capsys: Capture) -> None:
    assert main(command) == 0
    captured = capsys.readouterr()
    (file,) = Path().glob("*.mp4")
    assert re.fullmatch(r"tiny-ti2v-5B_96x64_1_a_red_ball_\d{8}_\d{6}\.mp4", file.name)
    assert captured.out.startswith(f"{file}: 96*64, 9 frames at 24 fps, seed 3\n")
    for stage in ("text", "condition", "denoise", "decode", "write"):
        assert re.search(rf"^  {stage} +\d", captured.out, re.MULTILINE)
    assert "step 1 of 2" in captured.err
    assert read_recipe(file).plan["seed"] == 3


def test_json_has_one_object_a_line(command: list[str], capsys: Capture) -> None:
    assert main([*command, "--json", "-o", "clip.mp4"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    events = [json.loads(line) for line in captured.out.splitlines()]
    stages = [event["stage"] for event in events if event["event"] == "stage"]
    assert stages == ["text", "prepare", "condition", "denoise", "decode", "write"]
    assert [(event["step"], event["steps"]) for event in events if event["event"] == "step"] == [(1, 2), (2, 2)]
    assert events[-1]["event"] == "result" and events[-1]["path"] == "clip.mp4" and events[-1]["seed"] == 3


def test_quiet_says_only_the_result(command: list[str], capsys: Capture) -> None:
    assert main([*command, "--quiet", "-o", "clip.webm"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.startswith("clip.webm: ")


def test_one_frame_is_a_picture_by_default(command: list[str], capsys: Capture) -> None:
    assert main([*command, "--quiet", "--frame_num", "1"]) == 0
    (file,) = Path().glob("*.png")
    with Image.open(file) as picture:
        assert picture.size == (96, 64)


def test_a_name_without_suffix_is_a_folder_of_pictures(command: list[str], capsys: Capture) -> None:
    assert main([*command, "--quiet", "-o", "frames"]) == 0
    assert len(list(Path("frames").glob("*.png"))) == 9


def test_a_slash_makes_a_folder_of_a_name_with_a_dot(command: list[str], capsys: Capture) -> None:
    assert main([*command, "--quiet", "-o", "v1.2/"]) == 0
    assert len(list(Path("v1.2").glob("*.png"))) == 9


def test_a_folder_for_names_made_here(command: list[str], capsys: Capture) -> None:
    assert main([*command, "--quiet", "--output_dir", "clips"]) == 0
    assert len(list(Path("clips").glob("tiny-ti2v-5B_96x64_1_a_red_ball_*.mp4"))) == 1


def test_a_drawn_seed_is_recorded(command: list[str], capsys: Capture) -> None:
    assert main([*command, "--quiet", "--seed", "-1", "-o", "clip.mp4"]) == 0
    assert read_recipe("clip.mp4").plan["seed"] >= 0


def test_long_prompts_are_cut_with_a_notice(command: list[str], capsys: Capture) -> None:
    command[1] = "a red ball rolls to the right " * 20
    assert main([*command, "--quiet", "-o", "clip.mp4"]) == 0
    assert "note: the prompt is too long by" in re.sub(r" +", " ", capsys.readouterr().err)


def test_overwrite(command: list[str], capsys: Capture) -> None:
    Path("clip.mp4").write_bytes(b"old")
    assert main([*command, "--quiet", "-o", "clip.mp4", "--overwrite"]) == 0
    assert media.probe("clip.mp4").num_frames == 9


def test_what_cannot_be_written_is_kept_elsewhere(command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    write_video = media.write_video
    refuge = Path("refuge").absolute()
    refuge.mkdir()

    def full_disk(path: Path, *args: object, **options: object) -> Path:
        if Path(path).parent != refuge:
            raise MediaError("the disk is full")
        return write_video(path, *args, **options)

    monkeypatch.setattr(media, "write_video", full_disk)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(refuge))
    assert main([*command, "--quiet", "-o", "clip.mp4"]) == 2
    assert f"the disk is full; the finished video was saved as {refuge / 'clip.mp4'} instead" in capsys.readouterr().err
    assert read_recipe(refuge / "clip.mp4").plan["seed"] == 3


def test_stopping_leaves_nothing(command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def stop(self: progress.LineProgress, event: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.LineProgress, "step", stop)
    assert main([*command, "-o", "clip.mp4"]) == 130
    assert list(Path().iterdir()) == []


def test_same_seed_same_frames(command: list[str], capsys: Capture) -> None:
    for name in ("a", "b"):
        assert main([*command, "--quiet", "-o", name]) == 0
    for frame in Path("a").glob("*.png"):
        with Image.open(frame) as one, Image.open(Path("b") / frame.name) as other:
            assert torch.equal(media.image_to_tensor(one), media.image_to_tensor(other))


# ------------------------------------------------------------------------------------------------- several clips


@pytest.fixture
def two_clips(command: list[str], tmp_path: Path) -> list[str]:
    Image.new("RGB", (96, 64), (200, 40, 90)).save(tmp_path / "first.png")
    return [*command, "--image", str(tmp_path / "first.png"), "--num_clip", "3", "--quiet"]


def test_clips_that_were_stopped_are_gone_on_with(two_clips: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A run that dies in its third clip, gone on with, gives the very frames of a run in one go."""
    assert main([*two_clips, "-o", "whole/"]) == 0
    assert "drift over 3 clips" in capsys.readouterr().out
    assert not Path("whole.clips").exists()
    finished = pipeline.decode
    decoded: list[int] = []

    def failing(components: Components, latents: torch.Tensor) -> torch.Tensor:
        decoded.append(len(decoded))
        if len(decoded) == 3:
            raise RuntimeSetupError("the power failed")
        return finished(components, latents)

    monkeypatch.setattr(pipeline, "decode", failing)
    assert main([*two_clips, "-o", "stopped/"]) == 2
    assert not Path("stopped").exists()
    assert sorted(path.name for path in Path("stopped.clips").glob("clip-*.mp4")) == ["clip-001.mp4", "clip-002.mp4"]
    monkeypatch.setattr(pipeline, "decode", finished)
    assert main([*two_clips, "-o", "stopped/"]) == 2  # not thrown away unasked
    assert "--resume" in capsys.readouterr().err
    assert main([*two_clips, "-o", "stopped/", "--sample_steps", "3", "--resume"]) == 2
    assert "another run" in capsys.readouterr().err
    assert main([*two_clips, "-o", "stopped/", "--resume"]) == 0
    assert not Path("stopped.clips").exists()
    whole, resumed = ([np.asarray(Image.open(file)) for file in sorted(Path(name).glob("*.png"))] for name in ("whole", "stopped"))
    assert len(whole) == len(resumed) == 25 and all(np.array_equal(a, b) for a, b in zip(whole, resumed))


@pytest.mark.parametrize(
    "flags, words",
    [(["--num_clip", "3", "-o", "new.mp4"], "nothing to go on with"), (["-o", "new.mp4"], "single clip"), ([], "-o FILE")],
)
def test_nothing_to_go_on_with(command: list[str], tmp_path: Path, flags: list[str], words: str, capsys: Capture) -> None:
    Image.new("RGB", (96, 64)).save(tmp_path / "first.png")
    assert main([*command, "--image", str(tmp_path / "first.png"), *flags, "--resume"]) == 2
    assert words in capsys.readouterr().err
