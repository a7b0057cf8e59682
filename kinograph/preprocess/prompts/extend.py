"""Prompt extension: a language model rewrites a short prompt into the kind of description a video model was trained on."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kinograph.errors import RequestError
from kinograph.media import read_image
from kinograph.media.images import ImageSource
from kinograph.preprocess.prompts.conversation import ExtensionError, Question, clean_answer
from kinograph.preprocess.prompts.hosted import DashScope, OpenAI, Service
from kinograph.preprocess.prompts.instructions import INSTRUCTIONS, LANGUAGES, NO_PROMPT, TASKS, kind_of
from kinograph.preprocess.prompts.local import LocalQwen

METHODS: dict[str, Callable[[str | None, str], Service | LocalQwen]] = {
    "local_qwen": lambda model, device: LocalQwen(model=model, device=device),
    "dashscope": lambda model, device: DashScope.from_environment(model=model),
    "openai": lambda model, device: OpenAI.from_environment(model=model),
}


@dataclass(frozen=True, kw_only=True)
class ExtendedPrompt:
    """What came of it. `notice` is None where the prompt was extended, else one sentence that says why it was not."""

    prompt: str  # to be used: the extended one, or the original
    original: str
    method: str
    model: str | None  # that answered; None where none was asked
    notice: str | None = None


class PromptExtender:
    """Extends prompts; a local model is loaded for the first one and kept until `close`. Use as a context manager.

    Raises RequestError, before anything is loaded or sent, for an unknown method or language and for a missing key, and
    MissingExtraError where the method needs a package that is not installed.
    """

    def __init__(self, *, method: str, model: str | None = None, language: str = "zh", device: str = "auto") -> None:
        if method not in METHODS:
            raise RequestError(f"the prompt extension method {method!r} is not known; choose one of {', '.join(METHODS)}")
        if language not in LANGUAGES:
            raise RequestError(f"prompts can be extended in {' or '.join(LANGUAGES)}; got the language {language!r}")
        self.method = method
        self.language = language
        self._assistant = METHODS[method](model, device)

    def __enter__(self) -> PromptExtender:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the local model."""
        self._assistant.close()

    def __call__(self, prompt: str, *, task: str, image: ImageSource | None = None, seed: int = 0) -> ExtendedPrompt:
        """The prompt, extended for `task` ("t2v", "i2v", "ti2v"); with a picture, for that picture.

        An empty prompt is invented from the picture. Whatever goes wrong with the model or the service becomes the notice,
        and the original prompt goes on. Raises RequestError where there is neither a prompt nor a picture, or the model
        cannot see the picture, and MediaError for a picture that cannot be read.
        """
        if task not in TASKS:
            return self._unchanged(prompt, None, f"prompts for {task} are not extended: its motion is given by other means")
        picture = read_image(image) if image is not None and TASKS[task] else None
        if picture is None and not prompt.strip():
            raise RequestError("the prompt is empty and there is no picture to describe; give one of them")
        question = Question(
            instruction=INSTRUCTIONS[kind_of(prompt, has_image=picture is not None), self.language],
            prompt=prompt.strip() or NO_PROMPT[self.language],
            image=picture,
            seed=seed,
        )
        model = self._assistant.model_for(has_image=picture is not None)
        try:
            extended = clean_answer(self._assistant.answer(question))
        except ExtensionError as error:
            return self._unchanged(prompt, model, str(error))
        if not extended:
            return self._unchanged(prompt, model, "the language model answered with an empty text")
        return ExtendedPrompt(prompt=extended, original=prompt, method=self.method, model=model)

    def _unchanged(self, prompt: str, model: str | None, reason: str) -> ExtendedPrompt:
        notice = f"the prompt was not extended and is used as written: {reason}"
        return ExtendedPrompt(prompt=prompt, original=prompt, method=self.method, model=model, notice=notice)


def extend_prompt(
    prompt: str,
    *,
    task: str,
    method: str,
    model: str | None = None,
    language: str = "zh",
    image: ImageSource | None = None,
    seed: int = 0,
    device: str = "auto",
) -> ExtendedPrompt:
    """One prompt, extended; see `PromptExtender`, which is the better choice for several."""
    with PromptExtender(method=method, model=model, language=language, device=device) as extend:
        return extend(prompt, task=task, image=image, seed=seed)
