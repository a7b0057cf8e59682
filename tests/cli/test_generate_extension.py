"""Prompt extension through the command, with a service on loopback."""
from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kinograph.cli.main import main
from kinograph.config import ModelSpec
from kinograph.recipe import read_recipe

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the service was asked: it answers each prompt with "a rich" before it, and "no" with status 400."""
    questions: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
            questions.append(question)
            body = json.dumps({"choices": [{"message": {"content": f"a rich {question}"}}]}).encode()
            self.send_response(400 if question == "no" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}/v1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield questions
    server.shutdown()
    server.server_close()


@pytest.fixture
def command(tiny_spec: ModelSpec, tiny_folder: Path, in_tmp: Path) -> list[str]:
    weights = ["--task", tiny_spec.name, "--ckpt_dir", str(tiny_folder)]
    extend = ["--use_prompt_extend", "--prompt_extend_method", "openai", "--prompt_extend_model", "m", "--prompt_extend_target_lang", "en"]
    return ["generate", *weights, *extend, "--frame_num", "1", "--sample_steps", "1", "--quiet"]


def test_the_extended_prompt_is_shown_and_kept(command: list[str], asked: list[str], tiny_folder: Path, capsys: Capture) -> None:
    assert main([*command, "ball", "-o", "x.png"]) == 0
    assert "the prompt as extended by m: a rich ball" in capsys.readouterr().err
    recipe = read_recipe("x.png")
    assert recipe.request["prompt"] == "a rich ball"
    assert recipe.prompt_extension == {"original": "ball", "method": "openai", "model": "m", "language": "en"}
    assert main(["replay", "x.png", "--ckpt_dir", str(tiny_folder), "--quiet", "-o", "y.png"]) == 0
    assert asked == ["ball"] and read_recipe("y.png").prompt_extension == recipe.prompt_extension
    assert read_recipe("y.png").request["prompt"] == "a rich ball"


def test_a_failure_goes_on_with_the_prompt_as_written(command: list[str], asked: list[str], capsys: Capture) -> None:
    assert main([*command, "no", "-o", "x.png"]) == 0
    assert "note: the prompt was not extended and is used as written: openai answered 400" in capsys.readouterr().err
    assert read_recipe("x.png").request["prompt"] == "no" and not read_recipe("x.png").prompt_extension


def test_a_batch_asks_once(command: list[str], asked: list[str], capsys: Capture) -> None:
    Path("p.txt").write_text("ball\nbox\n")
    many = [*command, "--prompts", "p.txt", "--num_seeds", "1", "--output_dir", "out"]
    assert main(many) == 0
    assert asked == ["ball", "box"]
    next(Path("out").glob("002*")).unlink()
    assert main(many) == 0
    assert asked == ["ball", "box"] and capsys.readouterr().out.endswith("out: 1 made, 1 already there\n")
    assert sorted(read_recipe(path).request["prompt"] for path in Path("out").glob("0*")) == ["a rich ball", "a rich box"]
