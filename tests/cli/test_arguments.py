"""The table of flags: complete for requests and options, published spellings kept, sentences for bad values."""
from __future__ import annotations

import dataclasses
import re

import pytest

from kinograph import requests
from kinograph.cli.arguments import GENERATE_FLAGS, fields_of, fold_spelling, near_match
from kinograph.cli.generate import parse
from kinograph.cli.job import job_of
from kinograph.config import RuntimeOptions
from kinograph.errors import RequestError

PUBLISHED = [
    "task", "size", "frame_num", "ckpt_dir", "offload_model",
    "ulysses_size", "t5_fsdp", "dit_fsdp", "t5_cpu", "save_file",
    "prompt", "use_prompt_extend", "prompt_extend_method", "prompt_extend_model", "prompt_extend_target_lang",
    "base_seed", "image", "sample_solver", "sample_steps", "sample_shift",
    "sample_guide_scale", "convert_model_dtype", "num_clip", "audio", "enable_tts",
    "tts_prompt_audio", "tts_prompt_text", "tts_text", "pose_video", "start_from_ref",
    "infer_frames", "src_root_path", "refert_num", "replace_flag", "use_relighting_lora",
]  # fmt: skip
REQUEST_CLASSES = [each for each in vars(requests).values() if isinstance(each, type) and issubclass(each, requests.VideoRequest)]


def filled(target: str) -> set[str]:
    return {name.partition(".")[2] for flag in GENERATE_FLAGS for name in flag.fills if name.startswith(f"{target}.")}


def test_every_published_flag_is_there() -> None:
    assert set(PUBLISHED) <= {name for flag in GENERATE_FLAGS for name in (flag.name, *flag.other_names)}


@pytest.mark.parametrize("request_class", REQUEST_CLASSES)
def test_every_request_field_has_a_flag(request_class: type) -> None:
    assert {field.name for field in dataclasses.fields(request_class)} <= filled("request")


def test_options_and_flags_agree() -> None:
    assert filled("options") == {field.name for field in dataclasses.fields(RuntimeOptions)}


def test_flags_fill_only_fields_that_exist() -> None:
    assert filled("request") <= {field.name for each in REQUEST_CLASSES for field in dataclasses.fields(each)}


def test_names_are_distinct() -> None:
    names = [name for flag in GENERATE_FLAGS for name in (flag.name, *flag.other_names)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("argv", [["--ckpt_dir", "here"], ["--ckpt-dir", "here"], ["--ckpt-dir=here"]])
def test_both_spellings(argv: list[str]) -> None:
    assert parse(argv) == {"ckpt_dir": "here"}


def test_spelling_leaves_values_alone() -> None:
    assert fold_spelling(["--save-file=a-b.mp4", "a-b", "-o", "--", "--x-y"]) == ["--save_file=a-b.mp4", "a-b", "-o", "--", "--x-y"]


@pytest.mark.parametrize(
    ("argv", "fields"),
    [
        (["--size", "832*480"], {"width": 832, "height": 480}),
        (["--size", "832x480"], {"width": 832, "height": 480}),
        (["--seed", "-1"], {"seed": -1}),
        (["--base_seed", "7"], {"seed": 7}),
        (["--sample_guide_scale", "4"], {"guidance_scale": 4.0}),
        (["--sample_guide_scale", "high_noise=4,low_noise=3.5"], {"guidance_scale": {"high_noise": 4.0, "low_noise": 3.5}}),
        (["a red ball", "--fps", "12"], {"prompt": "a red ball", "fps": 12.0}),
        (["--prompt", ""], {"prompt": ""}),
        (["--negative_prompt", ""], {"negative_prompt": ""}),
    ],
)
def test_values_reach_their_fields(argv: list[str], fields: dict) -> None:
    assert fields_of(parse(argv), "request") == fields


@pytest.mark.parametrize(("word", "value"), [("True", True), ("y", True), ("1", True), ("no", False), ("F", False), ("0", False)])
def test_published_boolean_words(word: str, value: bool) -> None:
    assert fields_of(parse(["--offload_model", word]), "options") == {"offload": value}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--seed", "abc"], r"--base_seed must be a whole number, or -1 to draw one; got 'abc'"),
        (["--frame_num", "1.5"], r"--frame_num must be a whole number; got '1.5'"),
        (["--size", "big"], r"--size must be WIDTH\*HEIGHT, such as 832\*480; got 'big'"),
        (["--offload_model", "maybe"], r"--offload_model must be true or false; got 'maybe'"),
        (["--fps", "nan"], r"--fps must be a finite number; got 'nan'"),
        (["--sample_guide_scale", "high_noise=x"], r"must be a number, or one for each expert: high_noise=4,low_noise=3; got"),
        (["--dtype", "fp4"], r"--dtype must be one of auto, bfloat16, float16, float32; got 'fp4'"),
        (["--size"], r"--size needs a value"),
        (["--sample_stpes", "4"], r"there is no flag --sample_stpes \(did you mean --sample_steps\?\)"),
        (["--ckpt", "x"], r"there is no flag --ckpt \(did you mean --ckpt_dir\?\)"),
        (["--zzzzzz"], r"there is no flag --zzzzzz; `kinograph generate --help`"),
        (["a", "red", "ball"], r"unexpected argument 'red'; put a text of several words in quotes"),
        (["a ball", "--prompt", "a box"], r"the prompt is given twice, 'a ball' and --prompt 'a box'"),
    ],
)
def test_bad_flags_are_refused_in_a_sentence(argv: list[str], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        parse(argv)


def test_switches_are_other_words_for_options() -> None:
    options = job_of(parse(["x", "--t5_cpu", "--convert_model_dtype"])).setup.options
    assert (options.text_device, options.dtype) == ("cpu", "bfloat16")
    with pytest.raises(RequestError, match=re.escape("--convert_model_dtype means --dtype bfloat16, but --dtype is 'float32'")):
        job_of(parse(["x", "--convert_model_dtype", "--dtype", "float32"]))


def test_near_match() -> None:
    assert near_match("T2V-A14b", ["t2v-A14B", "i2v-A14B"]) == " (did you mean t2v-A14B?)"
    assert near_match("qqq", ["t2v-A14B"]) == ""
