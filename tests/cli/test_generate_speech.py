"""`kinograph generate` with a speech model: whole runs of a tiny one in the published words, and what is refused."""
from __future__ import annotations

import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_audio import begins, bursts, tone, write_sound

import kinograph
from kinograph import media, pipeline
from kinograph.cli.generate import parse
from kinograph.cli.job import job_of
from kinograph.cli.main import main
from kinograph.config import ModelSpec, RuntimeOptions
from kinograph.media import write_video
from kinograph.preprocess import speech
from kinograph.recipe import read_recipe
from kinograph.runtime.placement import Components
from kinograph.tasks import s2v

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def command(tiny_s2v: ModelSpec, tiny_s2v_folder: Path, in_tmp: Path) -> list[str]:
    """The published command but for what to say."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)).save("face.png")
    options = ["--offload_model", "True", "--convert_model_dtype", "--sample_steps", "2", "--base_seed", "3", "--quiet"]
    return ["generate", "--task", tiny_s2v.name, "--size", "96*64", "--ckpt_dir", str(tiny_s2v_folder), *options, "--image", "face.png"]


PUBLISHED = "--task s2v-14B --size 1024*704 --ckpt_dir ./Wan2.2-S2V-14B/ --offload_model True --convert_model_dtype --image a.JPG"


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ("--audio talk.wav", {"audio": "talk.wav"}),
        ("--audio sing.MP3 --pose_video pose.mp4 --num_clip 1", {"audio": "sing.MP3", "pose_video": "pose.mp4", "num_clips": 1}),
        ("--audio talk.wav --start_from_ref --infer_frames 48", {"start_from_reference": True, "num_frames": 48}),
        (
            "--enable_tts --tts_prompt_audio voice.wav --tts_prompt_text so --tts_text yes",
            {"enable_tts": True, "tts_prompt_audio": "voice.wav", "tts_prompt_text": "so", "tts_text": "yes", "audio": None},
        ),
    ],
)
def test_published_commands_fill_the_request(given: str, fields: dict) -> None:
    job = job_of(parse([*PUBLISHED.split(), "--prompt", "summer beach", *given.split()]))
    expected = {"width": 1024, "height": 704, "image": "a.JPG", "prompt": "summer beach", **fields}
    assert {name: getattr(job.request, name) for name in expected} == expected
    assert job.setup.spec.name == "s2v-14B" and (job.setup.options.offload, job.setup.options.dtype) == (True, "bfloat16")


def streams(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The frames and the sound, as a player would have them."""
    return media.read_video(path)[0], media.read_sound(path).samples


def test_offloaded_models_are_loaded_once_a_stage(tiny_s2v: ModelSpec, tiny_s2v_folder: Path, command: list[str]) -> None:
    """Of the transformer that is once a clip, though it embeds what the clip is given before it denoises."""
    loaded: list[str] = []

    def note(model: torch.nn.Module, name: str) -> torch.nn.Module:
        loaded.append(name)
        return model

    components = Components(tiny_s2v, tiny_s2v_folder, RuntimeOptions(device="cpu", offload=True), transforms=[note])
    sound = media.Sound(samples=torch.from_numpy(tone(0.8, 16000, 1)).float() / 32768, rate=16000)
    request = kinograph.SpeechToVideo(image="face.png", audio=sound, width=96, height=64, num_steps=2, seed=3)
    video = pipeline.generate(components, request)
    assert video.plan.num_clips == 2 and video.frames.isfinite().all() and not components.loaded
    assert loaded == ["text_encoder", "speech_encoder", "vae", "all_noise", "vae", "vae", "all_noise", "vae"]


def test_a_picture_speaks(command: list[str], capsys: Capture) -> None:
    """Two clips and a bit of sound at another rate, in stereo: the video is as long and has it in time."""
    sound = bursts(0.81, 44100, 2)
    pcm = (sound.samples * 32767).to(torch.int16).numpy()
    write_sound(Path("talk.flac"), pcm, 44100, "flac")
    write_video("pose.mp4", torch.zeros(12, 64, 96, 3, dtype=torch.uint8), 16)
    given = ["--prompt", "a person talks", "--audio", "talk.flac", "--pose_video", "pose.mp4"]
    assert main([*command, *given, "--save_file", "a.mp4"]) == 0
    frames, heard = streams(Path("a.mp4"))
    assert frames.shape == (13, 64, 64, 3)  # 0.81 s
    assert media.probe("a.mp4").fps == 16 and len(heard) == 2
    assert abs(media.read_sound("a.mp4").seconds - 13 / 16) < 1 / 16
    assert begins(heard[0], 44100) == pytest.approx([0.25], abs=0.01) and begins(heard[1], 44100) == pytest.approx([0.75], abs=0.01)
    recipe = read_recipe("a.mp4")
    assert recipe.request["audio"]["path"].endswith("talk.flac") and len(recipe.request["pose_video"]["sha256"]) == 64
    assert recipe.plan["num_clips"] == 2 and recipe.plan["total_frames"] == 13
    with av.open("a.mp4") as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]


def test_the_published_name_of_a_clips_length_and_no_prompt(command: list[str], capsys: Capture) -> None:
    write_sound(Path("talk.wav"), tone(1.0, 8000), 8000)
    options = ["--audio", "talk.wav", "--infer_frames", "12", "--num_clip", "1", "--start_from_ref", "--sample_guide_scale", "1"]
    assert main([*command, *options]) == 0
    (file,) = Path().glob("tiny-s2v-14B_64x64_1_*.mp4")
    assert media.probe(file).num_frames == 12 and media.probe(file).has_audio


def test_a_seed_and_a_recipe_make_the_same_frames_again(command: list[str], tiny_s2v_folder: Path, capsys: Capture) -> None:
    """Compared as pictures: an encoded video may differ where what it is made from does not."""
    write_sound(Path("talk.wav"), tone(0.4, 16000), 16000)
    for name in ("a/", "b/"):
        assert main([*command, "--audio", "talk.wav", "--carry", "latents", "-o", name]) == 0
    assert main(["replay", "a", "--ckpt_dir", str(tiny_s2v_folder), "--quiet", "-o", "c/"]) == 0
    files = sorted(file.name for file in Path("a").glob("*.png"))
    assert len(files) == 7
    for file in files:
        first, *others = (media.image_to_tensor(media.read_image(Path(name) / file)) for name in "abc")
        assert all(torch.equal(first, other) for other in others)


def test_a_stopped_run_is_gone_on_with(command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    write_sound(Path("talk.wav"), tone(1.0, 16000), 16000)
    options = ["--audio", "talk.wav", "--sample_steps", "1", "--colour_anchor", "0.5"]
    assert main([*command, *options, "-o", "whole/"]) == 0
    condition = s2v.condition

    def stopped(*args: object) -> object:
        if args[4] == 2:
            raise KeyboardInterrupt
        return condition(*args)

    monkeypatch.setattr(s2v, "condition", stopped)
    assert main([*command, *options, "-o", "a/"]) == 130
    monkeypatch.setattr(s2v, "condition", condition)
    made = []
    monkeypatch.setattr(s2v, "condition", lambda *args: made.append(args[4]) or condition(*args))
    assert main([*command, *options, "-o", "a/", "--resume"]) == 0
    assert made == [2]
    whole, again = (sorted(Path(name).glob("*.png")) for name in ("whole", "a"))
    assert len(whole) == len(again) == 16
    for one, other in zip(whole, again):
        assert torch.equal(media.image_to_tensor(media.read_image(one)), media.image_to_tensor(media.read_image(other)))


def test_the_sound_track_of_a_video_and_a_silent_format(command: list[str], capsys: Capture) -> None:
    write_video("talk.mp4", torch.zeros(6, 32, 32, 3, dtype=torch.uint8), 16, sound=bursts(0.375, 48000, 1))
    assert main([*command, "--audio", "talk.mp4", "-o", "frames"]) == 0
    assert "frames cannot hold the sound and stays silent" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert len(list(Path("frames").glob("*.png"))) in (6, 7)  # the last block of the sound may be longer than the pictures


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs the program espeak-ng")
def test_a_text_is_spoken(command: list[str], capsys: Capture) -> None:
    options = ["--tts_text", "Hello!", "--frame_num", "40"]
    assert main([*command, *options, "-o", "a.mp4"]) == 0
    expected = speech.say("Hello!")
    frames, heard = streams(Path("a.mp4"))
    assert len(frames) == int(np.ceil(np.ceil(expected.samples.shape[1] * 16000 / expected.rate) / 1000))
    assert heard.abs().max() > 0.1
    recipe = read_recipe("a.mp4")
    assert recipe.request["tts_text"] == "Hello!" and recipe.request["audio"] is None


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "speaks a sound; give one with --audio FILE, or a text to say with --tts_text"),
        (["--audio", "none.wav"], "there is no sound none.wav"),
        (["--audio", "mute.mp4"], "mute.mp4 has no sound track"),
        (["--audio", "short.wav"], "short.wav lasts 0.025 s, which is too short"),
        (["--audio", "noise.mp3"], "cannot read noise.mp3 as a sound"),
        (["--audio", "talk.wav", "--tts_text", "hello"], "both --audio and --tts_text"),
        (["--enable_tts"], "--enable_tts is for speech made from a text; give the text with --tts_text"),
        (["--enable_tts", "--tts_text", "hello", "--tts_prompt_audio", "short.wav"], "the voice short.wav lasts 0.0 s"),
        (["--audio", "talk.wav", "--infer_frames", "81"], r"num_frames (--frame_num) must be a multiple of 4"),
        (["--audio", "talk.wav", "--num_clip", "0"], r"num_clips (--num_clip) must be a whole number at least 1; got 0"),
        (["--audio", "talk.wav", "--pose_video", "none.mp4"], "there is no video none.mp4"),
        (["--audio", "talk.wav", "--last_image", "face.png"], "--last_image is for"),
    ],
)
def test_refused_in_one_sentence(
    argv: list[str], sentence: str, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def load(*args: object, **options: object) -> None:
        raise AssertionError("weights were about to be loaded")

    monkeypatch.setattr(pipeline, "load", load)
    write_sound(Path("talk.wav"), tone(0.5, 16000), 16000)
    write_sound(Path("short.wav"), tone(0.025, 16000), 16000)
    Path("noise.mp3").write_bytes(np.random.default_rng(0).integers(0, 255, 5000, dtype=np.uint8).tobytes())
    write_video("mute.mp4", torch.zeros(3, 32, 32, 3, dtype=torch.uint8), 16)
    assert main([*command, *argv]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == "" and re.search(re.escape(sentence), line)
