"""The flags: one table, the parser made from it, and what the given flags fill.

A flag may be written with `_` or `-` (`--ckpt_dir`, `--ckpt-dir`); the published spelling is the one in the table.
Every value is checked as it is read; the message of the `RequestError` names the flag, the value and what would work.
"""
from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from kinograph.errors import RequestError

# ------------------------------------------------------------------------------------------------- kinds of value
# Each reads the text of one flag; a ValueError's message completes the sentence "--flag ...".


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("must be a whole number") from None


def seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("must be a whole number, or -1 to draw one") from None


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number") from None
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def yes_or_no(text: str) -> bool:
    """The words that the published command line takes, in any case."""
    word = text.strip().lower()
    if word in ("yes", "true", "t", "y", "1"):
        return True
    if word in ("no", "false", "f", "n", "0"):
        return False
    raise ValueError("must be true or false")


def size(text: str) -> tuple[int, int]:
    """(width, height) from `832*480` or `832x480`."""
    match = re.fullmatch(r"\s*(\d+)\s*[*xX×]\s*(\d+)\s*", text)
    if match is None:
        raise ValueError("must be WIDTH*HEIGHT, such as 832*480")
    return int(match[1]), int(match[2])


def guide_scale(text: str) -> float | dict[str, float]:
    """One number for every expert, or `high_noise=4,low_noise=3`."""
    if "=" not in text:
        return _scale(text)
    pairs = [part.partition("=") for part in text.split(",")]
    return {name.strip(): _scale(value) for name, _, value in pairs}


def _scale(text: str) -> float:
    try:
        return number(text)
    except ValueError:
        raise ValueError("must be a number, or one for each expert: high_noise=4,low_noise=3") from None


def seed_list(text: str) -> tuple[int, ...]:
    """`1,2,3`; each at least 0, none twice."""
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError("must be whole numbers with commas between them, such as 1,2,3") from None
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError("must be different numbers of at least 0; --num_seeds draws them")
    return seeds


def count(text: str) -> int:
    value = whole_number(text)
    if value < 1:
        raise ValueError("must be at least 1")
    return value


def one_of(*choices: str) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return choose


# ------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag. `read` is None for a switch.

    `fills` names the fields of the request or of `RuntimeOptions` that the value goes to (`"request.width"`,
    `"options.device"`); a value for two fields is a pair. Flags that fill nothing are read by the command itself.
    `tasks` limits a flag whose task has fields that no request class has yet.
    """

    name: str
    group: str
    help: str
    read: Callable[[str], Any] | None = str
    metavar: str | None = None
    other_names: tuple[str, ...] = ()
    short: str | None = None
    fills: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    means: tuple[Any, Any] = (True, False)  # of a switch: what its field is with it, and without
    repeats: bool = False  # may be given several times; the value is the list of all
    num_values: int = 1  # words that follow the flag; the value is their list if there are several

    def __str__(self) -> str:
        return f"--{self.name}"

    def value(self, text: str, *, called: str | None = None) -> Any:
        """What `text` stands for; the RequestError for what is none has the flag's name, or what it is `called`."""
        assert self.read is not None, f"{self} is a switch"
        try:
            return self.read(text)
        except ValueError as problem:
            raise RequestError(f"{called or self} {problem}; got {text!r}") from None


WHAT = "what to make"
MANY = "many at once"
SAMPLING = "sampling (default: the model's own)"
OUTPUT = "output"
PARTS = "weights from elsewhere (published, diffusers, ComfyUI or GGUF files, each in place of that of --ckpt_dir)"
LORA = "LoRA"
RUN = "how to run"
EXTEND = "prompt extension"
SPEECH = "speech to video (s2v)"
ANIMATION = "animation (animate)"


GENERATE_FLAGS: tuple[Flag, ...] = (
    Flag(name="task", other_names=("model",), group=WHAT, metavar="MODEL",
         help="a name that `kinograph models` lists (default: the model of --ckpt_dir, or ti2v-nano)"),
    Flag(name="ckpt_dir", group=WHAT, metavar="DIR",
         help="folder with the weights: published, of diffusers, or a ComfyUI tree (default: those that ship with the package, "
         "or that `kinograph download` has put into the cache)"),
    Flag(name="prompt", group=WHAT, metavar="TEXT", fills=("request.prompt",), help="what the video shows; also as the first argument"),
    Flag(name="negative_prompt", group=WHAT, metavar="TEXT", fills=("request.negative_prompt",),
         help='what it should not show (default: the model\'s own; "" for none)'),
    Flag(name="image", group=WHAT, metavar="FILE", fills=("request.image",), help="picture that the video starts with"),
    Flag(name="last_image", group=WHAT, metavar="FILE", fills=("request.last_image",), help="picture that the video ends with"),
    Flag(name="size", group=WHAT, read=size, metavar="W*H", fills=("request.width", "request.height"),
         help="pixels, 832*480 or 832x480; with a picture only the area (default: the model's own)"),
    Flag(name="frame_num", other_names=("infer_frames",), group=WHAT, read=whole_number, metavar="N", fills=("request.num_frames",),
         help="frames of a clip, 4n+1, or 4n for s2v (default: the model's own)"),
    Flag(name="num_clip", group=WHAT, read=whole_number, metavar="N", fills=("request.num_clips",),
         help="clips, each continuing from the one before (default: 1; for s2v as many as the sound needs)"),
    Flag(name="colour_anchor", group=WHAT, read=number, metavar="X", fills=("request.anchor",),
         help="keep the colours of later clips at those of the first, for s2v and animate: 0 (off, default) to 1"),
    Flag(name="smooth_joins", group=WHAT, read=yes_or_no, metavar="BOOL", fills=("request.smooth_joins",),
         help="later clips begin in the colours that the clip before ended in (default: true; false: as published)"),
    Flag(name="fps", group=WHAT, read=number, metavar="N", fills=("request.fps",),
         help="frames per second of the file (default: the model's own)"),
    Flag(name="base_seed", other_names=("seed",), group=SAMPLING, read=seed, metavar="N", fills=("request.seed",),
         help="the same seed gives the same video (default: -1, drawn and recorded)"),
    Flag(name="sample_steps", group=SAMPLING, read=whole_number, metavar="N", fills=("request.num_steps",), help="denoising steps"),
    Flag(name="sample_solver", group=SAMPLING, metavar="NAME", fills=("request.solver",), help="unipc, dpm++ or euler"),
    Flag(name="sample_shift", group=SAMPLING, read=number, metavar="X", fills=("request.shift",), help="shift of the noise schedule"),
    Flag(name="sample_guide_scale", group=SAMPLING, read=guide_scale, metavar="X", fills=("request.guidance_scale",),
         help="guidance scale: 4, or high_noise=4,low_noise=3"),
    Flag(name="noise_device", group=SAMPLING, metavar="NAME", fills=("request.noise_device",),
         help="where noise is drawn: cpu (the same everywhere) or cuda (as the published code does)"),
    Flag(name="preset", group=SAMPLING, metavar="NAME", fills=("request.preset",),
         help="few-step recipe, for distilled LoRAs: 4-step, or 4-step-motion (the first step guided and without the LoRA)"),
    Flag(name="prompts", group=MANY, metavar="FILE",
         help=".txt (a prompt a line), .jsonl or .csv (a row a video: prompt, and any flag above); goes on where it was stopped"),
    Flag(name="seeds", group=MANY, read=seed_list, metavar="N,N,...", help="a video of each prompt for each of these seeds"),
    Flag(name="num_seeds", group=MANY, read=count, metavar="N",
         help="videos of each prompt: seeds from --base_seed on, or drawn once and kept"),
    Flag(name="high_noise", group=PARTS, metavar="FILE", help="high-noise transformer"),
    Flag(name="low_noise", group=PARTS, metavar="FILE", help="low-noise transformer"),
    Flag(name="transformer", group=PARTS, metavar="FILE", help="transformer of a model that has only one"),
    Flag(name="vae", group=PARTS, metavar="FILE", help="VAE: 2.1 for the 14B models, 2.2 for ti2v"),
    Flag(name="text_encoder", group=PARTS, metavar="FILE", help="umT5"),
    Flag(name="speech_encoder", group=PARTS, metavar="PATH", help="wav2vec2, for s2v"),
    Flag(name="image_encoder", group=PARTS, metavar="FILE", help="CLIP, for animate"),
    Flag(name="tokenizer", group=PARTS, metavar="PATH", help="its tokenizer: folder, tokenizer.json or spiece.model"),
    Flag(name="lora", group=LORA, repeats=True, metavar="FILE[:X]",
         help="LoRA and its strength: style.safetensors:0.8, FILE:high_noise=1,low_noise=0.6, or by share of the steps "
         "FILE:1@0-0.5,0.3@0.5-1; may be given several times"),
    Flag(name="lora_high", group=LORA, repeats=True, metavar="FILE[:X]", help="the same, for the high-noise expert alone"),
    Flag(name="lora_low", group=LORA, repeats=True, metavar="FILE[:X]", help="the same, for the low-noise expert alone"),
    Flag(name="lora_ignore_unmatched", group=LORA, read=None, help="leave out what does not fit the model instead of refusing the file"),
    Flag(name="lora_mode", group=LORA, read=one_of("auto", "fused", "apart"), metavar="NAME",
         help="fused into the weights, kept apart beside them, or auto"),
    Flag(name="save_file", other_names=("output",), short="o", group=OUTPUT, metavar="FILE",
         help=".mp4, .webm, .gif, .png for a single frame, or a folder for PNGs (default: a name made from the request)"),
    Flag(name="output_dir", group=OUTPUT, metavar="DIR",
         help="folder for names made from the request (default: the working directory; for many videos, videos)"),
    Flag(name="overwrite", group=OUTPUT, read=None, help="replace the file if it exists"),
    Flag(name="resume", group=OUTPUT, read=None, help="go on with a video of several clips that was stopped: the same command, with -o"),
    Flag(name="json", group=OUTPUT, read=None, help="one JSON object a line on stdout"),
    Flag(name="quiet", group=OUTPUT, read=None, help="no progress"),
    Flag(name="device", group=RUN, metavar="NAME", fills=("options.device",), help="auto, cpu, cuda, cuda:1 or mps"),
    Flag(name="dtype", group=RUN, read=one_of("auto", "bfloat16", "float16", "float32"), metavar="NAME", fills=("options.dtype",),
         help="of the transformer: auto, bfloat16, float16 or float32"),
    Flag(name="vae_dtype", group=RUN, read=one_of("bfloat16", "float16", "float32"), metavar="NAME", fills=("options.vae_dtype",),
         help="of the VAE (default: float32)"),
    Flag(name="convert_model_dtype", group=RUN, read=None, help="the same as --dtype bfloat16"),
    Flag(name="text_device", group=RUN, metavar="NAME", fills=("options.text_device",), help="where the text encoder runs (default: auto)"),
    Flag(name="t5_cpu", group=RUN, read=None, help="the same as --text_device cpu"),
    Flag(name="offload_model", group=RUN, read=yes_or_no, metavar="BOOL", fills=("options.offload",),
         help="release each model after its stage (default: where memory is short)"),
    Flag(name="attention", group=RUN, metavar="NAME", fills=("options.attention",),
         help="attention backend; `kinograph doctor` lists them (default: auto)"),
    Flag(name="ulysses_size", group=RUN, read=whole_number, metavar="N", help="GPUs that share one video (this version: 1)"),
    Flag(name="t5_fsdp", group=RUN, read=None, help="shard the text encoder over GPUs (not in this version)"),
    Flag(name="dit_fsdp", group=RUN, read=None, help="shard the transformer over GPUs (not in this version)"),
    Flag(name="use_prompt_extend", group=EXTEND, read=None, help="have a language model write a richer prompt"),
    Flag(name="prompt_extend_method", group=EXTEND, read=one_of("local_qwen", "dashscope", "openai"), metavar="NAME",
         help="local_qwen (default), dashscope, or openai for any server that speaks its protocol"),
    Flag(name="prompt_extend_model", group=EXTEND, metavar="NAME", help="language model (default: the method's own)"),
    Flag(name="prompt_extend_target_lang", group=EXTEND, read=one_of("zh", "en"), metavar="LANG", help="zh (default) or en"),
    Flag(name="audio", group=SPEECH, metavar="FILE", fills=("request.audio",),
         help="what the person says or sings: any sound, or a video with one; the result is as long and has it as its sound"),
    Flag(name="tts_text", group=SPEECH, metavar="TEXT", fills=("request.tts_text",),
         help="what to say, instead of --audio; without --tts_prompt_audio in a small built-in voice"),
    Flag(name="enable_tts", group=SPEECH, read=None, fills=("request.enable_tts",), help="the same as giving --tts_text, which it needs"),
    Flag(name="tts_prompt_audio", group=SPEECH, metavar="FILE", fills=("request.tts_prompt_audio",),
         help="a sample of the voice to speak --tts_text with, 1 to 30 s; needs CosyVoice"),
    Flag(name="tts_prompt_text", group=SPEECH, metavar="TEXT", fills=("request.tts_prompt_text",), help="what is said in the sample"),
    Flag(name="pose_video", group=SPEECH, metavar="FILE", fills=("request.pose_video",), help="drawn skeletons to follow"),
    Flag(name="start_from_ref", group=SPEECH, read=None, fills=("request.start_from_reference",), help="begin with the picture itself"),
    Flag(name="carry", group=SPEECH, metavar="NAME", fills=("request.carry",),
         help="what a clip goes on from: the newest pixels (default), or latents, which are not encoded anew"),
    Flag(name="sound_offset", group=SPEECH, read=number, metavar="X", fills=("request.sound_offset",),
         help="seconds by which the sound in the file comes later (default: 0)"),
    Flag(name="src_root_path", other_names=("material",), group=ANIMATION, metavar="DIR", fills=("request.material",),
         help="folder of the prepared inputs"),
    Flag(name="refert_num", group=ANIMATION, read=whole_number, metavar="N", fills=("request.overlap",),
         help="frames that a clip goes on from, 1 or 5 (default: 1)"),
    Flag(name="replace_flag", group=ANIMATION, read=None, means=("replace", "animate"), fills=("request.mode",),
         help="put the character in the person's place instead of animating the picture"),
    Flag(name="use_relighting_lora", group=ANIMATION, tasks=("animate",), read=None, help="light the character as the scene is lit"),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ the parser


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `RequestError` instead of exiting, and knows its flags for a near match."""

    def __init__(self, command: str, *, example: str, description: str) -> None:
        super().__init__(
            prog=f"kinograph {command}",
            usage=f"{example}\n\n{description}",
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=120),
        )
        self._flags: tuple[Flag, ...] = ()

    def add_flags(self, flags: Sequence[Flag]) -> None:
        self._flags += tuple(flags)
        groups: dict[str, Any] = {}
        for flag in flags:
            if flag.group not in groups:
                groups[flag.group] = self.add_argument_group(flag.group)
            names = [f"--{name}" for name in (flag.name, *flag.other_names)] + ([f"-{flag.short}"] if flag.short else [])
            kind: dict[str, Any] = {"type": flag.value, "metavar": flag.metavar}
            if flag.read is None:
                kind = {"action": "store_const", "const": flag.means[0]}
            if flag.repeats:
                kind["action"] = "append"
            if flag.num_values > 1:
                kind["nargs"] = flag.num_values
            groups[flag.group].add_argument(*names, dest=flag.name, default=None, help=flag.help.replace("%", "%%"), **kind)

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """The given values by flag name; flags that were not given are absent."""
        parsed, extra = self.parse_known_args(fold_spelling(argv))
        unknown = [word for word in extra if word.startswith("-")]
        if unknown:
            self._refuse_unknown(unknown[0])
        if extra:
            raise RequestError(f"unexpected argument {extra[0]!r}; put a text of several words in quotes")
        return {name: value for name, value in vars(parsed).items() if value is not None}

    def error(self, message: str) -> NoReturn:
        # argparse writes "argument --base_seed/--seed: expected one argument"; the first spelling is enough.
        message = re.sub(r"argument (-[^/:\s]+)[^:]*: expected one argument", r"\1 needs a value", message)
        raise RequestError(re.sub(r"argument (-[^/:\s]+)[^:]*: expected (\d+) arguments", r"\1 needs \2 values", message))

    def _refuse_unknown(self, word: str) -> NoReturn:
        flag = word.partition("=")[0]
        known = [f"--{name}" for entry in self._flags for name in (entry.name, *entry.other_names)]
        raise RequestError(f"there is no flag {flag}{near_match(flag, known)}; `{self.prog} --help` lists the flags")


def fold_spelling(argv: Sequence[str]) -> list[str]:
    """`argv` with the `-` inside long flags written `_`; values after `=` and after a lone `--` stay as they are."""
    folded: list[str] = []
    for position, word in enumerate(argv):
        if word == "--":
            return folded + list(argv[position:])
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            word = "--" + name.replace("-", "_") + equals + value
        folded.append(word)
    return folded


def near_match(word: str, known: Iterable[str]) -> str:
    """" (did you mean X?)" where something known is close, else nothing."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""


# --------------------------------------------------------------------------------------------- from flags to fields


def fields_of(values: Mapping[str, Any], target: str, flags: Sequence[Flag] = GENERATE_FLAGS) -> dict[str, Any]:
    """The fields of `target` ("request" or "options") that the given flags fill."""
    fields: dict[str, Any] = {}
    for flag in flags:
        names = [field.partition(".")[2] for field in flag.fills if field.startswith(f"{target}.")]
        if flag.name in values and names:
            value = values[flag.name]
            fields |= dict(zip(names, value if len(names) > 1 else (value,)))
    return fields
