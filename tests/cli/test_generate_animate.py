"""Animation from the command line: the published command on prepared material, both modes, two clips, with a tiny model."""
from __future__ import annotations

import math
import re
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from animate_folder import write_material
from seeded import seeded_tensor

import kinograph
from kinograph import media
from kinograph.checkpoints.lora_formats import model_shapes
from kinograph.cli.main import main
from kinograph.config import ModelSpec
from kinograph.recipe import read_recipe
from kinograph.runtime.embeddings import EmbeddingCache
from kinograph.tasks import animate

Capture = pytest.CaptureFixture[str]


def write_tone(path: Path, seconds: float) -> None:
    samples = (8000 * np.sin(np.arange(round(seconds * 32000)) * 2 * math.pi * 440 / 32000)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(32000)
        file.writeframes(samples.tobytes())


def pixels(file: Path) -> torch.Tensor:
    return media.image_to_tensor(media.read_image(file))


def write_relighting_lora(spec: ModelSpec, path: Path) -> None:
    state = {}
    for name, shape in model_shapes(spec).items():
        if re.fullmatch(r"blocks\.\d+\.(self_attn|cross_attn)\.\w+\.weight", name) and len(shape) == 2:
            module = name.removesuffix(".weight")
            for half, size in (("A", (4, shape[1])), ("B", (shape[0], 4))):
                state[f"{module}.lora_{half}.weight"] = seeded_tensor(f"{module}.{half}", size, 3)
    torch.save({"state_dict": state}, path)


@pytest.fixture
def command(tiny_animate: ModelSpec, tiny_animate_folder: Path, in_tmp: Path) -> list[str]:
    """The published command, on a model that is small enough, up to the flags for material and mode."""
    return [
        "generate", "--task", tiny_animate.name, "--ckpt_dir", str(tiny_animate_folder),
        "--sample_steps", "2", "--base_seed", "3", "--quiet",
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["animate", "replace"])
def test_two_clips_of_the_right_length_and_rate(mode: str, command: list[str], capsys: Capture) -> None:
    write_material(Path("material"), frames=13, size=(64, 48), fps=25, replace=mode == "replace")
    flags = ["--replace_flag"] if mode == "replace" else []
    assert main([*command, "--src_root_path", "material", "--refert_num", "1", *flags, "-o", "a.mp4"]) == 0
    found = media.probe("a.mp4")
    assert (found.width, found.height, found.fps, media.count_frames("a.mp4")) == (64, 48, 25, 13)
    recipe = read_recipe("a.mp4")
    assert (recipe.plan["num_clips"], recipe.request["mode"], recipe.request["prompt"]) == (2, mode, "a person moves")


def test_the_prompt_is_honoured(command: list[str], capsys: Capture) -> None:
    write_material(Path("material"), frames=3)
    command += ["--src_root_path", "material"]
    assert main([*command, "--prompt", "a red ball", "-o", "a"]) == 0
    assert main([*command, "-o", "b"]) == 0
    with_prompt, without = (torch.stack([pixels(file) for file in sorted(Path(name).glob("*.png"))]) for name in "ab")
    assert len(with_prompt) == len(without) == 3 and not torch.equal(with_prompt, without)


@pytest.mark.parametrize("frames", [1, 5])
def test_short_videos(frames: int, command: list[str], capsys: Capture) -> None:
    write_material(Path("material"), frames=frames)
    assert main([*command, "--src_root_path", "material", "--refert_num", "5", "-o", "pictures"]) == 0
    assert len(list(Path("pictures").glob("*.png"))) == frames


@pytest.mark.parametrize("flags", [[], ["--offload_model", "true"], ["--dtype", "bfloat16", "--vae_dtype", "bfloat16"]])
def test_guidance_has_a_negative_without_a_face(flags: list[str], command: list[str], capsys: Capture) -> None:
    write_material(Path("material"), frames=5, replace=True)
    command += ["--src_root_path", "material", "--replace_flag", "--frame_num", "5"]
    assert main([*command, *flags, "-o", "plain"]) == 0
    assert main([*command, *flags, "--sample_guide_scale", "2", "--negative_prompt", "grey", "-o", "guided"]) == 0
    plain, guided = (torch.stack([pixels(file) for file in sorted(Path(name).glob("*.png"))]) for name in ("plain", "guided"))
    assert plain.shape == guided.shape == (5, 3, 48, 64) and not torch.equal(plain, guided)


def test_from_python_the_published_prompt_is_the_default(
    tiny_animate: ModelSpec, tiny_animate_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_material(tmp_path / "material", frames=2)
    embed, prompts = EmbeddingCache.embed, []
    monkeypatch.setattr(EmbeddingCache, "embed", lambda self, texts: prompts.append(texts[0]) or embed(self, texts))
    components = kinograph.load(tiny_animate, tiny_animate_folder)
    video = kinograph.generate(components, kinograph.Animate(material=folder, num_steps=1, num_frames=5, seed=1))
    assert video.frames.shape == (3, 2, 48, 64) and prompts == [tiny_animate.default_prompt]
    assert video.recipe.request["material"]["path"] == str(folder.absolute())


def test_relighting(command: list[str], tiny_animate: ModelSpec, tiny_animate_folder: Path, capsys: Capture) -> None:
    write_material(Path("material"), frames=5, replace=True)
    command += ["--src_root_path", "material", "--refert_num", "1", "--replace_flag"]
    assert main([*command, "--use_relighting_lora", "-o", "lit.mp4"]) == 2
    assert "lacks relighting_lora/adapter_model.safetensors and relighting_lora.ckpt" in capsys.readouterr().err
    lora = tiny_animate_folder / "relighting_lora.ckpt"
    write_relighting_lora(tiny_animate, lora)
    try:
        assert main([*command, "--use_relighting_lora", "-o", "lit"]) == 0
        assert main([*command, "-o", "unlit"]) == 0
    finally:
        lora.unlink()
    assert [Path(each["path"]).name for each in read_recipe("lit").loras] == ["relighting_lora.ckpt"]
    lit, unlit = (pixels(sorted(Path(name).glob("*.png"))[0]) for name in ("lit", "unlit"))
    assert (lit - unlit).abs().max() > 0.01


def test_the_sound_of_the_source_is_kept(command: list[str], capsys: Capture) -> None:
    folder = write_material(Path("material"), frames=13, fps=25, record={"fps": 25.0, "sound": "src_sound.wav", "num_frames": 13})
    write_tone(folder / "src_sound.wav", 0.6)
    assert main([*command, "--src_root_path", "material", "-o", "a.mp4"]) == 0
    sound = media.read_sound("a.mp4")
    assert abs(sound.seconds - 13 / 25) < 1 / 25
    assert sound.samples.abs().max() > 0.1


def test_rows_have_folders_of_their_own(command: list[str], capsys: Capture) -> None:
    write_material(Path("rows/one"), frames=3, replace=True)
    write_material(Path("rows/two"), frames=5)
    Path("rows/all.jsonl").write_text(
        '{"material": "one", "replace_flag": true, "seed": 1}\n{"src_root_path": "two", "replace_flag": false, "seed": 1}\n'
        '{"src_root_path": "two", "replace_flag": "perhaps"}\n'
    )
    assert main([*command, "--prompts", "rows/all.jsonl"]) == 2
    captured = capsys.readouterr()
    assert "replace_flag must be true or false" in captured.err
    recipes = [read_recipe(path) for path in sorted(Path("videos").glob("*.mp4"))]
    assert sorted((recipe.request["mode"], recipe.plan["total_frames"]) for recipe in recipes) == [("animate", 5), ("replace", 3)]


def test_a_stopped_run_goes_on(command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    write_material(Path("material"), frames=22, replace=True)
    command += ["--src_root_path", "material", "--refert_num", "5", "--frame_num", "13", "--replace_flag"]
    assert main([*command, "-o", "whole/"]) == 0
    condition, clips = animate.condition, []

    def stopped_at_the_second(components: Any, plan: Any, text: Any, prepared: Any, clip: int, carry: Any) -> Any:
        clips.append(clip)
        if clips == [0, 1]:
            raise KeyboardInterrupt
        return condition(components, plan, text, prepared, clip, carry)

    monkeypatch.setattr(animate, "condition", stopped_at_the_second)
    assert main([*command, "-o", "stopped/"]) == 130
    assert main([*command, "-o", "stopped/", "--resume"]) == 0
    assert clips == [0, 1, 1, 2]
    whole, resumed = (torch.stack([pixels(file) for file in sorted(Path(name).glob("*.png"))]) for name in ("whole", "stopped"))
    assert len(whole) == 22 and torch.equal(whole, resumed)


def test_replay_wants_the_same_material(command: list[str], tiny_animate_folder: Path, capsys: Capture) -> None:
    folder = write_material(Path("material"), frames=3)
    assert main([*command, "--src_root_path", "material", "-o", "a.mp4"]) == 0
    again = ["replay", "a.mp4", "-o", "b.mp4", "--ckpt_dir", str(tiny_animate_folder), "--quiet"]
    assert main(again) == 0
    assert media.count_frames("b.mp4") == 3
    (folder / "src_ref.png").unlink()
    write_material(folder / "other", frames=5)
    (folder / "other/src_pose.mp4").replace(folder / "src_pose.mp4")
    assert main([*again[:2], "-o", "c.mp4", *again[4:]]) == 2
    assert "the recipe's material" in capsys.readouterr().err


def test_material_is_needed(command: list[str], capsys: Capture) -> None:
    assert main(command) == 2
    assert re.search(r"give its folder with --src_root_path DIR", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--refert_num", "77"], r"overlap \(--refert_num\) must be 1 or 5"),
        (["--frame_num", "76"], r"num_frames \(--frame_num\) must be 4n\+1"),
        (["--replace_flag"], r"lacks src_bg.mp4 and src_mask.mp4"),
        (["--image", "a.png"], r"--image is for"),
    ],
)
def test_refused_in_one_sentence(flags: list[str], sentence: str, command: list[str], capsys: Capture) -> None:
    write_material(Path("material"), frames=3)
    assert main([*command, "--src_root_path", "material", *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(sentence, lines[0])
