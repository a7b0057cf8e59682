"""Language models behind HTTP: the DashScope API, and any endpoint that speaks the OpenAI chat protocol.

    DASH_API_KEY, DASH_API_URL        DashScope; the address defaults to the one on the Chinese mainland
    OPENAI_API_KEY, OPENAI_BASE_URL   OpenAI, a local server (vLLM, llama.cpp, Ollama, LM Studio) or another provider

The environment is read when a service is made. Pictures travel inside the request; nothing is written to the disk.
"""
from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from kinograph.errors import RequestError
from kinograph.preprocess.prompts.conversation import ExtensionError, Question, fit_area, shortened

DASHSCOPE_URL = "https://dashscope.aliyuncs.com/api/v1"  # international: https://dashscope-intl.aliyuncs.com/api/v1
DASHSCOPE_TEXT, DASHSCOPE_VISION = "qwen-plus", "qwen-vl-max"
OPENAI_URL = "https://api.openai.com/v1"
MAX_PICTURE_AREA = 512 * 512
MAX_ANSWER_BYTES = 4 * 2**20
SEED_RANGE = 2**31  # what both protocols take: 0 to 2^31 - 1
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses that another attempt may cure


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a service is waited for."""

    attempts: int = 4
    first_pause: float = 1.0  # seconds; doubled after each attempt
    longest_pause: float = 15.0  # also bounds what the service asks for in Retry-After
    timeout: float = 60.0  # seconds for one attempt as a whole


class Service:
    """A language model behind HTTP. Subclasses say how a question is written down and where the answer stands."""

    name: str
    url_variable: str
    key_variable: str

    def __init__(self, *, url: str, key: str | None, model: str | None, patience: Patience | None = None) -> None:
        if not _is_address(url):
            raise RequestError(f"{self.url_variable} must be an address that begins with https:// or http://; got {url!r}")
        if key and not re.fullmatch(r"[!-~]+", key.strip()):  # the key itself is never shown
            raise RequestError(f"{self.key_variable} holds spaces or characters that no key has; set it to the key alone")
        self.url = url.rstrip("/")
        self.key = key.strip() if key else None
        self.model = model
        self.patience = patience or Patience()

    def model_for(self, *, has_image: bool) -> str:
        """The model that answers."""
        raise NotImplementedError

    def call(self, question: Question) -> tuple[str, dict[str, Any]]:
        """(address, body) of the request."""
        raise NotImplementedError

    def text_in(self, reply: Any) -> Any:
        """What stands where the answer belongs; may raise KeyError, IndexError or TypeError."""
        raise NotImplementedError

    def answer(self, question: Question) -> str:
        """The model's answer as it came. Raises ExtensionError when there is none."""
        address, body = self.call(question)
        request = urllib.request.Request(address, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        text = _text_of(self._parsed(self._send_patiently(request)))
        if not text.strip():
            raise ExtensionError(f"{self.name} answered with an empty text")
        return text

    def close(self) -> None:
        """Nothing is held."""

    def _send_patiently(self, request: urllib.request.Request) -> bytes:
        pause = self.patience.first_pause
        for attempt in range(1, self.patience.attempts + 1):
            try:
                return _send(request, timeout=self.patience.timeout)
            except urllib.error.HTTPError as error:
                if error.code not in PASSING or attempt == self.patience.attempts:
                    raise ExtensionError(self._refusal(error)) from error
                wait = _retry_after(error) or pause
            except (OSError, http.client.HTTPException) as error:  # no connection, a dropped one, or a timeout
                if attempt == self.patience.attempts:
                    raise ExtensionError(f"{self.name} at {self.url} did not answer ({_reason(error)})") from error
                wait = pause
            time.sleep(min(wait, self.patience.longest_pause))
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        said = f"{self.name} answered {error.code}{_message_in(error)}"
        if error.code in (401, 403):
            return f"{said}; check {self.key_variable}"
        if error.code == 404 or 300 <= error.code < 400:
            return f"{said}; check {self.url_variable} ({self.url}) and the name of the model"
        return said

    def _parsed(self, body: bytes) -> Any:
        try:
            return self.text_in(json.loads(body))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            start = shortened(body[:400].decode("utf-8", "replace"))
            raise ExtensionError(f"{self.name} answered something that is not the answer of a chat: {start!r}") from error


class DashScope(Service):
    """The hosted API of the published code: one address for text, another for pictures."""

    name, url_variable, key_variable = "dashscope", "DASH_API_URL", "DASH_API_KEY"

    @classmethod
    def from_environment(cls, *, model: str | None, patience: Patience | None = None) -> DashScope:
        key = os.environ.get("DASH_API_KEY")
        if not key:
            raise RequestError("the method dashscope needs a key; set the environment variable DASH_API_KEY, or use another method")
        return cls(url=os.environ.get("DASH_API_URL") or DASHSCOPE_URL, key=key, model=model, patience=patience)

    def model_for(self, *, has_image: bool) -> str:
        return self.model or (DASHSCOPE_VISION if has_image else DASHSCOPE_TEXT)

    def call(self, question: Question) -> tuple[str, dict[str, Any]]:
        parameters = {"result_format": "message", "seed": question.seed % SEED_RANGE}
        model = self.model_for(has_image=question.image is not None)
        if question.image is None:
            address = f"{self.url}/services/aigc/text-generation/generation"
            contents: tuple[Any, Any] = question.instruction, question.prompt
        else:
            address = f"{self.url}/services/aigc/multimodal-generation/generation"
            contents = [{"text": question.instruction}], [{"text": question.prompt}, {"image": picture_data(question.image)}]
        messages = [{"role": role, "content": content} for role, content in zip(("system", "user"), contents)]
        return address, {"model": model, "input": {"messages": messages}, "parameters": parameters}

    def text_in(self, reply: Any) -> Any:
        return reply["output"]["choices"][0]["message"]["content"]


class OpenAI(Service):
    """Any server with `/chat/completions`. It needs the name of a model, since every server has its own."""

    name, url_variable, key_variable = "openai", "OPENAI_BASE_URL", "OPENAI_API_KEY"

    @classmethod
    def from_environment(cls, *, model: str | None, patience: Patience | None = None) -> OpenAI:
        url, key = os.environ.get("OPENAI_BASE_URL") or OPENAI_URL, os.environ.get("OPENAI_API_KEY")
        if not key and url == OPENAI_URL:  # servers of one's own rarely ask for one
            raise RequestError("the method openai needs a key; set OPENAI_API_KEY, or OPENAI_BASE_URL to a server that needs none")
        if not model:
            raise RequestError("the method openai needs the name of a model that the server has; give --prompt_extend_model")
        return cls(url=url, key=key, model=model, patience=patience)

    def model_for(self, *, has_image: bool) -> str:
        return str(self.model)

    def call(self, question: Question) -> tuple[str, dict[str, Any]]:
        content: str | list[dict[str, Any]] = question.prompt
        if question.image is not None:
            picture = {"type": "image_url", "image_url": {"url": picture_data(question.image)}}
            content = [{"type": "text", "text": question.prompt}, picture]
        messages = [{"role": "system", "content": question.instruction}, {"role": "user", "content": content}]
        # No token limit: servers disagree on the name of that field, and the instruction bounds the length.
        return f"{self.url}/chat/completions", {"model": self.model, "messages": messages, "seed": question.seed % SEED_RANGE}

    def text_in(self, reply: Any) -> Any:
        return reply["choices"][0]["message"]["content"]


def picture_data(image: Image.Image) -> str:
    """`image` as a data URL: a PNG of at most 512 * 512 pixels of area."""
    buffer = io.BytesIO()
    fit_area(image, most=MAX_PICTURE_AREA).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and re.fullmatch(r"[!-~]+", url) is not None
    except ValueError:  # such as a bracket that is never closed
        return False


# --------------------------------------------------------------------------------------------------------- sending


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would be repeated as a GET without the question; the status is the better answer."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def _send(request: urllib.request.Request, *, timeout: float) -> bytes:
    """The body of the reply. `timeout` bounds the whole exchange, not only each wait for a packet."""
    deadline = time.monotonic() + timeout
    received = bytearray()
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as response:
        expected = response.length  # None where the service does not say
        while block := response.read1(1 << 16):
            received += block
            if time.monotonic() > deadline:
                raise TimeoutError(f"the answer was not complete after {timeout:g} s")
            if len(received) > MAX_ANSWER_BYTES:
                raise ExtensionError(f"the service at {request.host} answered with more than {MAX_ANSWER_BYTES:,} bytes")
    if expected is not None and len(received) < expected:
        raise http.client.IncompleteRead(bytes(received), expected - len(received))
    return bytes(received)


def _text_of(content: Any) -> str:
    """Text of a message: a string, or a list of parts of which some have a text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return ""


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds that the service asks to wait; None if it names none, or a date."""
    try:
        return max(0.0, float(error.headers.get("Retry-After", "")))
    except ValueError:
        return None


def _message_in(error: urllib.error.HTTPError) -> str:
    """` (code: message)` from the body of a refusal, as either protocol writes it; "" if there is none."""
    try:
        body = json.loads(error.read(1 << 16))
        inner = body.get("error", body)
        parts = [inner] if isinstance(inner, str) else [inner.get("code"), inner.get("message")]
    except (ValueError, AttributeError, OSError, http.client.HTTPException):
        return ""
    said = ": ".join(str(part) for part in parts if part)
    return f" ({shortened(said)})" if said else ""


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return shortened(str(reason) or type(reason).__name__)
