"""The command `kinograph`: picks the subcommand, and turns what it raises into one sentence and an exit status.

Exit status: 0 done, 1 a defect of this program (with a traceback), 2 something the user can put right, 130 interrupted,
141 the reader of the output went away.
A subcommand is a module with `run(argv) -> int`, imported when it is called, so that `--help` needs no torch.
"""
from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from kinograph import __version__
from kinograph.cli.arguments import near_match
from kinograph.errors import KinographError, RequestError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


@dataclass(frozen=True)
class Command:
    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "generate": Command("kinograph.cli.generate", "make a video from a prompt, a picture, or both; or many videos"),
    "animate": Command("kinograph.cli.animate", "make a character move as a person in a video, or take that person's place"),
    "preprocess": Command("kinograph.cli.preprocess", "prepare a video and a picture for character animation"),
    "models": Command("kinograph.cli.models", "list the models: task, sizes, parameters, where the weights are"),
    "inspect": Command("kinograph.cli.inspect", "show the recipe of a generated file, or what weights are"),
    "replay": Command("kinograph.cli.replay", "make a generated file again from its recipe"),
    "download": Command("kinograph.cli.download", "fetch published weights, and go on where it was stopped"),
    "convert": Command("kinograph.cli.convert", "write weights in another layout, or in fewer bits"),
    "lora": Command("kinograph.cli.lora", "say what a LoRA file is and which model it fits"),
    "doctor": Command("kinograph.cli.doctor", "say what this machine can run and what is missing"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's own) and returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(argv)
        sys.stdout.flush()
        return status
    except KinographError as error:
        return _report(error, as_json="--json" in argv)
    except KeyboardInterrupt:
        print("stopped; no unfinished file was left behind", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
        return EXIT_BROKEN_PIPE


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"kinograph {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise RequestError(f"there is no command {name!r}{near_match(name, COMMANDS)}; the commands are {', '.join(COMMANDS)}")
    return import_module(COMMANDS[name].module).run(rest)


def _report(error: KinographError, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"event": "error", "kind": type(error).__name__, "message": str(error)}, ensure_ascii=False), flush=True)
    print(f"kinograph: {error}", file=sys.stderr)
    return EXIT_USER_ERROR


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        'kinograph generate "a red ball rolls to the right"\n\n'
        "makes a video on this machine with the small model that ships with the package.\n\n"
        f"Commands:\n{commands}\n\n"
        "`kinograph COMMAND --help` lists the flags of a command; `kinograph --version` prints the version."
    )
