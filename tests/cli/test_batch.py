"""Many videos: rows and seeds, bad rows among good ones, going on after a stop, each text encoded once."""
from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from kinograph import media, pipeline
from kinograph.cli.ledger import alone
from kinograph.cli.main import main
from kinograph.config import ModelSpec
from kinograph.errors import RuntimeSetupError
from kinograph.models.t5 import TextEncoder
from kinograph.recipe import read_recipe

Capture = pytest.CaptureFixture[str]

# The command with the tiny model known to it, in a process that can be killed; `log` has a line for what must happen once.
PROGRAM = """
import sys
from conftest import TINY
from kinograph import media
from kinograph.cli.main import main
from kinograph.config import MODELS
from kinograph.models.t5 import TextEncoder

MODELS[TINY.name] = TINY
forward, write_video = TextEncoder.forward, media.write_video

def log(line):
    with open("log", "a") as file:
        file.write(line + "\\n")

def logged_forward(self, ids, mask):
    log("encoded")
    return forward(self, ids, mask)

def logged_write(path, *args, **options):
    written = write_video(path, *args, **options)
    log(f"wrote {written}")
    return written

TextEncoder.forward, media.write_video = logged_forward, logged_write
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def batch(tiny_spec: ModelSpec, tiny_folder: Path, in_tmp: Path) -> list[str]:
    weights = ["--task", tiny_spec.name, "--ckpt_dir", str(tiny_folder)]
    return ["generate", *weights, "--sample_steps", "2", "--frame_num", "1", "--output_dir", "out", "--quiet"]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of prompts at each use of the text encoder."""
    counts: list[int] = []
    forward = TextEncoder.forward

    def counting(self: TextEncoder, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        counts.append(len(ids))
        return forward(self, ids, mask)

    monkeypatch.setattr(TextEncoder, "forward", counting)
    return counts


def names(folder: str = "out") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir() if not path.name.startswith("."))


def write(name: str, *lines: str | dict) -> str:
    Path(name).write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return name


def test_rows_and_seeds(batch: list[str], encoded: list[int], capsys: Capture) -> None:
    prompts = write("prompts.txt", "a red ball", "# no", "a box", "a red ball")
    assert main([*batch, "--prompts", prompts, "--seeds", "5,7"]) == 0
    assert names() == [f"{row}_{seed}.png" for row in ("001_a_red_ball", "002_a_box", "003_a_red_ball") for seed in (5, 7)]
    assert sum(encoded) == 3  # two prompts and the negative one
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and lines[-1] == "out: 6 made"
    assert read_recipe("out/002_a_box_7.png").request["prompt"] == "a box"
    assert main([*batch, "--prompts", prompts, "--seeds", "5,7"]) == 0
    assert capsys.readouterr().out == "out: 0 made, 6 already there\n" and sum(encoded) == 3


def test_a_video_of_a_batch_is_the_video_made_alone(batch: list[str], capsys: Capture) -> None:
    assert main([*batch, "a red ball", "--seeds", "5,7"]) == 0
    alone = [*batch[: batch.index("--output_dir")], "a red ball", "--seed", "7", "-o", "alone.png", "--quiet"]
    assert main(alone) == 0
    assert Path("alone.png").exists() and names()[1] == "001_a_red_ball_7.png"
    with Image.open("alone.png") as one, Image.open("out/001_a_red_ball_7.png") as other:
        assert one.tobytes() == other.tobytes()


def test_drawn_seeds_are_kept(batch: list[str], capsys: Capture) -> None:
    command = [*batch, "a red ball", "--num_seeds", "3"]
    assert main(command) == 0
    first = names()
    assert len(first) == 3
    (Path("out") / first[1]).unlink()
    assert main(command) == 0
    assert names() == first and capsys.readouterr().out.endswith("out: 1 made, 2 already there\n")


def test_num_seeds_count_from_the_base(batch: list[str], capsys: Capture) -> None:
    assert main([*batch, "a", "--num_seeds", "2", "--base_seed", "8"]) == 0
    assert names() == ["001_a_8.png", "001_a_9.png"]


def test_rows_have_settings_of_their_own(batch: list[str], capsys: Capture) -> None:
    Path("sub").mkdir()
    Image.new("RGB", (96, 64), "red").save("sub/first.png")
    rows = write("sub/rows.jsonl", {"prompt": "a", "seed": 1, "num_frames": 5}, {"prompt": "b", "seed": 2, "image": "first.png"})
    assert main([*batch, "--prompts", rows]) == 0
    assert names() == ["001_a_1.mp4", "002_b_2.png"]
    assert media.probe("out/001_a_1.mp4").num_frames == 5
    assert Path(read_recipe("out/002_b_2.png").request["image"]["path"]) == Path("sub/first.png").absolute()


def test_bad_rows_are_named_and_the_others_run(batch: list[str], capsys: Capture) -> None:
    rows = write(
        "rows.jsonl",
        {"prompt": "a", "seed": 1},
        {"prompt": "b", "sed": 1},
        {"prompt": "c", "num_frames": 4},
        {"prompt": "d", "image": "none.png"},
        {"prompt": ""},
        {"seed": 1},
        {"prompt": "e", "seed": 1},
    )
    assert main([*batch, "--prompts", rows]) == 2
    captured = capsys.readouterr()
    assert names() == ["001_a_1.png", "007_e_1.png"] and captured.out.endswith("out: 2 made, 5 failed\n")
    problems = [line.removeprefix("note: ") for line in captured.err.splitlines() if "rows.jsonl:" in line]
    assert [problem.split(": ")[0] for problem in problems] == [f"rows.jsonl:{line}" for line in range(2, 7)]
    for problem, words in zip(problems, ("'sed'", "num_frames (--frame_num)", "none.png", "the prompt is empty", "there is no prompt")):
        assert words in problem


def test_rows_are_checked_before_weights(batch: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(pipeline, "load", lambda *args, **options: pytest.fail("weights were about to be loaded"))
    assert main([*batch, "--prompts", write("rows.jsonl", {"prompt": "a", "num_frames": 4}, "{")]) == 2
    assert not Path("out").exists()


def test_events_carry_the_row(batch: list[str], capsys: Capture) -> None:
    rows = write("rows.jsonl", {"prompt": "a", "seed": 3}, "{", {"prompt": "b", "seed": 4})
    assert main([*batch, "--json", "--prompts", rows]) == 2
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (problem,) = [event for event in events if event["event"] == "problem"]
    assert (problem["row"], problem["source"]) == (2, "rows.jsonl:2") and "not JSON" in problem["message"]
    for kind, count in (("begin", 2), ("step", 4), ("result", 2)):
        found = [(event["row"], event["source"], event["seed"]) for event in events if event["event"] == kind]
        assert sorted(set(found)) == [(1, "rows.jsonl:1", 3), (3, "rows.jsonl:3", 4)] and len(found) == count
    assert events[-1] == {"event": "summary", "made": 2, "already_there": 0, "failed": 1, "folder": "out"}


def test_moved_rows_keep_their_videos_and_changed_ones_get_new_ones(batch: list[str], capsys: Capture) -> None:
    assert main([*batch, "--prompts", write("p.txt", "a", "b"), "--seeds", "1"]) == 0
    assert main([*batch, "--prompts", write("p.txt", "new", "b", "a"), "--seeds", "1"]) == 0
    assert names() == ["001_a_1.png", "001_new_1.png", "002_b_1.png"]
    assert main([*batch, "--prompts", write("p.txt", "new", "b", "a"), "--seeds", "1", "--sample_shift", "3"]) == 0
    assert names() == ["001_a_1.png", "001_new_1.png", "001_new_1_2.png", "002_b_1.png", "002_b_1_2.png", "003_a_1.png"]


def test_what_is_not_of_the_batch_is_left_alone(batch: list[str], capsys: Capture) -> None:
    Path("out").mkdir()
    Path("out/001_a_1.png").write_bytes(b"precious")
    prompts = write("p.txt", "a", "b")
    assert main([*batch, "--prompts", prompts, "--seeds", "1"]) == 2
    assert "p.txt:1: out/001_a_1.png exists and is not the video of this row" in capsys.readouterr().err
    assert Path("out/001_a_1.png").read_bytes() == b"precious" and names() == ["001_a_1.png", "002_b_1.png"]
    assert main([*batch, "--prompts", prompts, "--seeds", "1", "--overwrite"]) == 0
    assert read_recipe("out/001_a_1.png").request["prompt"] == "a" and capsys.readouterr().out.endswith("1 made, 1 already there\n")


def test_a_row_that_fails_at_work_does_not_stop_the_others(
    batch: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    generate = pipeline.generate

    def short_of_memory(components: object, request: object, **options: object) -> object:
        if request.prompt == "b":
            raise RuntimeSetupError("out of memory")
        return generate(components, request, **options)

    monkeypatch.setattr(pipeline, "generate", short_of_memory)
    assert main([*batch, "--prompts", write("p.txt", "a", "b", "c"), "--seeds", "1"]) == 2
    assert "p.txt:2: out of memory" in capsys.readouterr().err and names() == ["001_a_1.png", "003_c_1.png"]


def test_damaged_embeddings_are_made_again(batch: list[str], encoded: list[int], capsys: Capture) -> None:
    command = [*batch, "--prompts", write("p.txt", "a"), "--seeds"]
    assert main([*command, "1"]) == 0
    for file in Path("out/.kinograph/embeddings").iterdir():
        file.write_bytes(b"damaged")
    assert main([*command, "2"]) == 0 and sum(encoded) == 4
    assert main([*command, "3"]) == 0 and sum(encoded) == 4


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["a", "--seeds", "1", "-o", "a.mp4"], "--save_file names one video"),
        (["a", "--prompts", "p.txt"], "leave the single prompt out"),
        (["a", "--seeds", "1", "--num_seeds", "2"], "leave --num_seeds and --base_seed out"),
        (["a", "--seeds", "1,1"], "--seeds must be different numbers"),
        (["a", "--num_seeds", "0"], "--num_seeds must be at least 1"),
        (["--seeds", "1"], "there is no prompt"),
    ],
)
def test_flags_that_do_not_belong_together(batch: list[str], argv: list[str], sentence: str, capsys: Capture) -> None:
    write("p.txt", "a")
    assert main([*batch, *argv]) == 2
    assert sentence in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- interrupted


def start(command: list[str]) -> subprocess.Popen[bytes]:
    here = Path(__file__).parent  # its conftest knows the tiny model; the folders above have what that imports
    paths = os.pathsep.join(map(str, (here, here.parents[0], here.parents[1])))
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *command], env=environment, stdout=subprocess.DEVNULL)


def test_killed_and_started_again(batch: list[str]) -> None:
    """Killed at a random moment of its work: exactly the videos asked for, each made once, each text encoded once."""
    num_prompts = 6
    prompts = [f"a red ball {number}" for number in range(num_prompts)]
    command = [*batch, "--prompts", write("p.txt", *prompts), "--num_seeds", "2", "--frame_num", "9"]
    kills = 0
    for after in (1, 4):  # finished videos that the kill waits for, and then some
        process = start(command)
        while process.poll() is None and len(list(Path("out").glob("0*"))) < after:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        process.kill()
        kills += process.wait() != 0
    assert kills
    assert start(command).wait() == 0
    assert len(names()) == 2 * num_prompts and not list(Path("out").glob(".*.partial.*"))
    assert sorted(read_recipe(path).request["prompt"] for path in Path("out").glob("0*")) == sorted(2 * prompts)
    log = Path("log").read_text().splitlines()
    assert log.count("encoded") == num_prompts + 1  # the prompts and the negative one
    written = [line for line in log if line.startswith("wrote")]
    assert len(set(written)) == len(written) <= 2 * num_prompts  # one may have been killed between its writing and its line


def test_two_batches_in_one_folder(batch: list[str], capsys: Capture) -> None:
    Path("out").mkdir()
    with alone(Path("out")):
        assert main([*batch, "a", "--seeds", "1"]) == 2
    assert "another batch is at work in out" in capsys.readouterr().err
    assert main([*batch, "a", "--seeds", "1"]) == 0


def test_forty_prompts(batch: list[str]) -> None:
    prompts = [f"a red ball {number}" for number in range(40)]
    command = [*batch, "--prompts", write("p.txt", *prompts)]
    process = start(command)
    enough = random.randrange(1, 39)
    while process.poll() is None and len(list(Path("out").glob("0*"))) < enough:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert start(command).wait() == 0
    assert [name[:3] for name in names()] == [f"{number:03d}" for number in range(1, 41)]
    assert Path("log").read_text().splitlines().count("encoded") == 41
