"""Prompt extension: what is sent, what is made of the answer, and that no failure stops a video."""
from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kinograph.errors import MediaError, MissingExtraError, RequestError
from kinograph.preprocess.prompts import METHODS, ExtendedPrompt, PromptExtender, extend_prompt, hosted, local
from kinograph.preprocess.prompts.conversation import clean_answer, fit_area
from kinograph.preprocess.prompts.instructions import CINEMATIC_TEXT, IMAGE_MOTION, IMAGE_ONLY, INSTRUCTIONS, LANGUAGES, kind_of

KEY = "sk-secret-0123"


def dashscope_text(text: str) -> tuple[int, Any]:
    message = {"role": "assistant", "content": text}
    return 200, {"output": {"choices": [{"finish_reason": "stop", "message": message}]}, "usage": {}, "request_id": "r"}


def dashscope_vision(text: str) -> tuple[int, Any]:
    message = {"role": "assistant", "content": [{"text": text}]}
    return 200, {"output": {"choices": [{"finish_reason": "stop", "message": message}]}, "request_id": "r"}


def openai_reply(text: Any) -> tuple[int, Any]:
    return 200, {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which are not made."""
    taken: list[float] = []
    monkeypatch.setattr(hosted.time, "sleep", taken.append)
    return taken


@pytest.fixture
def dash(service, monkeypatch, pauses):
    monkeypatch.setenv("DASH_API_KEY", KEY)
    monkeypatch.setenv("DASH_API_URL", service.url)
    return service


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (1600, 900), (200, 30, 30)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def sent_picture(data_url: str) -> Image.Image:
    head, _, data = data_url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


# --------------------------------------------------------------------------------------------------- instructions


def test_every_kind_has_an_instruction_in_each_language() -> None:
    assert set(INSTRUCTIONS) == {(kind, language) for kind in (CINEMATIC_TEXT, IMAGE_MOTION, IMAGE_ONLY) for language in LANGUAGES}
    for (_, language), text in INSTRUCTIONS.items():
        chinese = sum("\u4e00" <= letter <= "\u9fff" for letter in text)
        assert chinese > len(text) / 2 if language == "zh" else chinese == 0


def test_the_kind_follows_prompt_and_picture() -> None:
    assert kind_of("a cat", has_image=False) == CINEMATIC_TEXT
    assert kind_of("a cat", has_image=True) == IMAGE_MOTION
    assert kind_of("  ", has_image=True) == IMAGE_ONLY


# ------------------------------------------------------------------------------------------------------ dashscope


def test_dashscope_text(dash) -> None:
    dash.replies = [dashscope_text("白天，柔光。\n一只猫跳上窗台。")]
    result = extend_prompt("a cat", task="t2v", method="dashscope", seed=2**40 + 7)
    assert result == ExtendedPrompt(prompt="白天，柔光。 一只猫跳上窗台。", original="a cat", method="dashscope", model="qwen-plus")
    (request,) = dash.requests
    assert request["path"] == "/v1/services/aigc/text-generation/generation"
    assert request["key"] == f"Bearer {KEY}"
    assert request["body"] == {
        "model": "qwen-plus",
        "input": {
            "messages": [
                {"role": "system", "content": INSTRUCTIONS[CINEMATIC_TEXT, "zh"]},
                {"role": "user", "content": "a cat"},
            ]
        },
        "parameters": {"result_format": "message", "seed": 7},
    }


def test_dashscope_vision(dash, picture) -> None:
    dash.replies = [dashscope_vision("The ball rolls.")]
    result = extend_prompt("it rolls", task="i2v", method="dashscope", language="en", image=picture)
    assert (result.prompt, result.model, result.notice) == ("The ball rolls.", "qwen-vl-max", None)
    (request,) = dash.requests
    assert request["path"] == "/v1/services/aigc/multimodal-generation/generation"
    system, user = request["body"]["input"]["messages"]
    assert system["content"] == [{"text": INSTRUCTIONS[IMAGE_MOTION, "en"]}]
    assert user["content"][0] == {"text": "it rolls"}
    shown = sent_picture(user["content"][1]["image"])
    assert shown.width * shown.height <= 512 * 512 and abs(shown.width / shown.height - 16 / 9) < 0.01
    assert shown.getpixel((5, 5)) == (200, 30, 30)


def test_an_empty_prompt_is_described_from_the_picture(dash, picture) -> None:
    dash.replies = [dashscope_vision("The ball rolls.")]
    assert extend_prompt("", task="ti2v", method="dashscope", language="en", image=picture).prompt == "The ball rolls."
    system, user = dash.requests[0]["body"]["input"]["messages"]
    assert system["content"] == [{"text": INSTRUCTIONS[IMAGE_ONLY, "en"]}]
    assert user["content"][0]["text"]  # a message may not be empty


def test_a_task_without_pictures_does_not_send_one(dash, picture) -> None:
    dash.replies = [dashscope_text("A cat.")]
    assert extend_prompt("a cat", task="t2v", method="dashscope", image=picture).model == "qwen-plus"
    assert dash.requests[0]["path"].endswith("/text-generation/generation")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((401, {"code": "InvalidApiKey", "message": "Invalid API-key provided."}), ["401", "InvalidApiKey", "check DASH_API_KEY"]),
        ((400, {"code": "DataInspectionFailed", "message": "Inappropriate content."}), ["400", "DataInspectionFailed"]),
        ((404, b"<html>no such page</html>"), ["404", "check DASH_API_URL"]),
        ((302, {}), ["302", "check DASH_API_URL"]),
    ],
)
def test_refusals_are_told_at_once(dash, pauses, reply, words) -> None:
    dash.replies = [reply]
    result = extend_prompt("a cat", task="t2v", method="dashscope")
    assert (result.prompt, result.original) == ("a cat", "a cat")
    assert all(word in result.notice for word in words), result.notice
    assert KEY not in result.notice
    assert len(dash.requests) == 1 and pauses == []


@pytest.mark.parametrize("failure", [(429, {"code": "Throttling", "message": "slow down"}), (500, b"oops"), "drop"])
def test_passing_failures_are_tried_again(dash, pauses, failure) -> None:
    dash.replies = [failure, failure, failure, dashscope_text("A white cat.")]
    assert extend_prompt("a cat", task="t2v", method="dashscope").prompt == "A white cat."
    assert len(dash.requests) == 4 and pauses == [1, 2, 4]


@pytest.mark.parametrize("failure", [(429, {"code": "Throttling", "message": "slow down"}), (500, b"oops"), "drop"])
def test_four_attempts_and_no_more(dash, pauses, failure) -> None:
    dash.replies = [failure]
    result = extend_prompt("a cat", task="t2v", method="dashscope")
    assert result.prompt == "a cat" and result.notice
    assert len(dash.requests) == 4 and len(pauses) == 3


def test_the_service_may_ask_for_a_pause_but_not_for_an_hour(dash, pauses) -> None:
    dash.headers = {"Retry-After": "3600"}
    dash.replies = [(429, {}), dashscope_text("A white cat.")]
    assert extend_prompt("a cat", task="t2v", method="dashscope").notice is None
    assert pauses == [hosted.Patience().longest_pause]


@pytest.mark.parametrize(
    "reply",
    [(200, b"{broken"), (200, b"\xff\xfe"), (200, []), (200, {"output": {}}), (200, {"output": {"choices": []}}), (200, None)],
)
def test_an_answer_of_another_shape_keeps_the_prompt(dash, reply) -> None:
    dash.replies = [reply]
    result = extend_prompt("a cat", task="t2v", method="dashscope")
    assert result.prompt == "a cat" and "not the answer of a chat" in result.notice


@pytest.mark.parametrize("text", ["", "  \n", "<think>hm</think> ", '""'])
def test_an_empty_answer_keeps_the_prompt(dash, text) -> None:
    dash.replies = [dashscope_text(text)]
    result = extend_prompt("a cat", task="t2v", method="dashscope")
    assert result.prompt == "a cat" and "empty text" in result.notice


def test_an_endless_answer_is_cut_short(dash, monkeypatch) -> None:
    monkeypatch.setattr(hosted, "MAX_ANSWER_BYTES", 1000)
    dash.replies = [dashscope_text("x" * 5000)]
    assert "more than 1,000 bytes" in extend_prompt("a cat", task="t2v", method="dashscope").notice


def test_nobody_there(monkeypatch, pauses) -> None:
    monkeypatch.setenv("DASH_API_KEY", KEY)
    monkeypatch.setenv("DASH_API_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    result = extend_prompt("a cat", task="t2v", method="dashscope")
    assert result.prompt == "a cat" and "did not answer" in result.notice and len(pauses) == 3


# --------------------------------------------------------------------------------------------------------- openai


def test_openai_text_needs_no_key_for_an_own_server(service, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", service.url + "/")
    service.replies = [openai_reply("<think>short?</think>\n“A cat jumps.”")]
    result = extend_prompt("a cat", task="ti2v", method="openai", model="qwen3", language="en", seed=5)
    assert (result.prompt, result.model) == ("A cat jumps.", "qwen3")
    (request,) = service.requests
    assert request["path"] == "/v1/chat/completions" and request["key"] is None
    messages = [{"role": "system", "content": INSTRUCTIONS[CINEMATIC_TEXT, "en"]}, {"role": "user", "content": "a cat"}]
    assert request["body"] == {"model": "qwen3", "messages": messages, "seed": 5}


def test_openai_vision(service, monkeypatch, picture) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", service.url)
    service.replies = [openai_reply([{"type": "text", "text": "It rolls."}])]
    assert extend_prompt("go", task="i2v", method="openai", model="m", image=picture).prompt == "It rolls."
    text, image = service.requests[0]["body"]["messages"][1]["content"]
    assert text == {"type": "text", "text": "go"}
    assert sent_picture(image["image_url"]["url"]).mode == "RGB"
    assert service.requests[0]["key"] == f"Bearer {KEY}"


def test_openai_refusal_names_its_own_variable(service, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", service.url)
    service.replies = [(401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}})]
    notice = extend_prompt("a cat", task="t2v", method="openai", model="m").notice
    assert "invalid_api_key: Incorrect API key" in notice and "check OPENAI_API_KEY" in notice


# ------------------------------------------------------------------------------------- what is refused beforehand


def test_unknown_method_and_language() -> None:
    with pytest.raises(RequestError, match=r"'gpt'.*local_qwen, dashscope, openai"):
        extend_prompt("a", task="t2v", method="gpt")
    with pytest.raises(RequestError, match="zh or en; got the language 'fr'"):
        extend_prompt("a", task="t2v", method="dashscope", language="fr")
    assert list(METHODS) == ["local_qwen", "dashscope", "openai"]


def test_missing_keys_and_models(monkeypatch) -> None:
    for name in ("DASH_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RequestError, match="DASH_API_KEY"):
        extend_prompt("a", task="t2v", method="dashscope")
    with pytest.raises(RequestError, match="OPENAI_API_KEY"):
        extend_prompt("a", task="t2v", method="openai", model="m")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(RequestError, match="--prompt_extend_model"):
        extend_prompt("a", task="t2v", method="openai")


@pytest.mark.parametrize("url", ["dashscope.aliyuncs.com", "http://[::1", "https://", "file:///etc/passwd", "http://a b"])
def test_addresses_that_are_none(monkeypatch, url) -> None:
    monkeypatch.setenv("DASH_API_KEY", KEY)
    monkeypatch.setenv("DASH_API_URL", url)
    with pytest.raises(RequestError, match="DASH_API_URL"):
        extend_prompt("a", task="t2v", method="dashscope")


def test_a_key_that_is_none_is_not_shown(monkeypatch) -> None:
    monkeypatch.setenv("DASH_API_KEY", "sk-1\nX: y")
    with pytest.raises(RequestError, match="DASH_API_KEY") as caught:
        extend_prompt("a", task="t2v", method="dashscope")
    assert "sk-1" not in str(caught.value)


def test_nothing_to_go_by(dash, picture, tmp_path) -> None:
    with pytest.raises(RequestError, match="prompt is empty"):
        extend_prompt(" ", task="t2v", method="dashscope", image=picture)
    with pytest.raises(MediaError, match=r"no picture .*gone\.png"):
        extend_prompt("a", task="i2v", method="dashscope", image=tmp_path / "gone.png")
    assert dash.requests == []


@pytest.mark.parametrize("task", ["animate"])
def test_tasks_without_an_instruction_keep_the_prompt(dash, task) -> None:
    result = extend_prompt("a", task=task, method="dashscope")
    assert result.prompt == "a" and task in result.notice and result.model is None
    assert dash.requests == []


def test_without_transformers(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"kinograph\[prompt\]"):
        extend_prompt("a", task="t2v", method="local_qwen")


# ---------------------------------------------------------------------------------------------------- local models


def test_local_text_model_follows_the_seed(text_model, short_answers) -> None:
    short_answers(12)
    before = torch.random.get_rng_state()
    with PromptExtender(method="local_qwen", model=str(text_model), device="cpu") as extend:
        first, again, other = (extend("a cat", task="t2v", seed=seed) for seed in (1, 1, 2))
    assert first.notice is None and first.model == str(text_model)
    assert first.prompt == again.prompt != other.prompt
    assert torch.equal(before, torch.random.get_rng_state())


def test_local_vision_model_sees_the_picture(vision_model, short_answers, tmp_path) -> None:
    short_answers(12)
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "noise.png")
    red, noise = Image.new("RGB", (64, 64), "red"), tmp_path / "noise.png"
    with PromptExtender(method="local_qwen", model=str(vision_model), device="cpu", language="en") as extend:
        answers = [extend("go", task="i2v", image=image, seed=3) for image in (red, red, noise)]
    assert [answer.notice for answer in answers] == [None] * 3
    assert answers[0].prompt == answers[1].prompt != answers[2].prompt


def test_local_vision_model_gets_one_token_per_patch(vision_model) -> None:
    assistant = local.LocalQwen(model=str(vision_model), device="cpu")
    tokenizer, image_processor, model = assistant._load(has_image=True)
    question = local.Question(instruction="say <what>", prompt="a <|image_pad|> b", image=Image.new("RGB", (700, 560)))
    inputs = local._inputs(question, tokenizer, image_processor, model)
    assert inputs["image_grid_thw"].tolist() == [[1, 40, 50]]  # patches of 14 pixels
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 20 * 25  # merged two by two
    assert torch.equal(inputs["mm_token_type_ids"] == 1, inputs["input_ids"] == model.config.image_token_id)


def test_local_vision_model_answers_text_alone(vision_model, short_answers) -> None:
    short_answers(6)
    assert extend_prompt("a cat", task="ti2v", method="local_qwen", model=str(vision_model), device="cpu").notice is None


def test_local_text_model_cannot_see(text_model, picture) -> None:
    with pytest.raises(RequestError, match="cannot see pictures"):
        extend_prompt("go", task="i2v", method="local_qwen", model=str(text_model), image=picture, device="cpu")


def test_local_model_is_loaded_once(text_model, short_answers, monkeypatch) -> None:
    short_answers(2)
    loads = []
    load = local._load
    monkeypatch.setattr(local, "_load", lambda *arguments, **options: loads.append(1) or load(*arguments, **options))
    with PromptExtender(method="local_qwen", model=str(text_model), device="cpu") as extend:
        for seed in range(3):
            extend("a cat", task="t2v", seed=seed)
    assert loads == [1]


def test_local_model_that_cannot_be_loaded(tmp_path) -> None:
    result = extend_prompt("a cat", task="t2v", method="local_qwen", model=str(tmp_path), device="cpu")
    assert result.prompt == "a cat" and "could not be used" in result.notice
    with pytest.raises(RequestError, match="no language model"):
        extend_prompt("a cat", task="t2v", method="local_qwen", model=str(tmp_path / "gone"), device="cpu")


def test_short_names_are_the_published_ones() -> None:
    assert local.location("QwenVL2.5_3B") == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert local.location("Qwen2.5_14B") == "Qwen/Qwen2.5-14B-Instruct"
    assert local.location("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"
    assert local.DEFAULT_TEXT in local.SHORT_NAMES and local.DEFAULT_VISION in local.SHORT_NAMES


# --------------------------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  A cat.\n\nIt  runs. ", "A cat. It runs."),
        ("<think>x\ny</think>\nA cat.", "A cat."),
        ("let me see</think>A cat.", "A cat."),
        ('"A cat."', "A cat."),
        ('"Hello" says the "cat"', '"Hello" says the "cat"'),
        ("", ""),
    ],
)
def test_clean_answer(text, clean) -> None:
    assert clean_answer(text) == clean


@pytest.mark.parametrize("size", [(4000, 3000), (1, 1_000_000), (1_000_000, 1), (513, 512), (20000, 3)])
def test_fit_area_bounds_any_picture(size) -> None:
    image = Image.new("1", size)
    fitted = fit_area(image, most=512 * 512)
    assert 0 < fitted.width * fitted.height <= 512 * 512 and fitted.mode == "RGB"


def test_fit_area_leaves_what_fits() -> None:
    image = Image.new("RGB", (512, 512))
    assert fit_area(image, most=512 * 512).size == (512, 512)
    assert fit_area(Image.new("RGB", (100, 50)), least=20_000, most=10**6).size == (200, 100)
