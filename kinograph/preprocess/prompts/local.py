"""Qwen on this machine, through transformers: text models, and vision models where there is a picture.

The model is loaded for the first question and kept until `close`, so that a batch loads it once.
"""
from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kinograph.errors import MissingExtraError, RequestError
from kinograph.preprocess.prompts.conversation import ExtensionError, Question, fit_area, shortened
from kinograph.runtime.device import resolve_device, return_memory

SHORT_NAMES = {
    "Qwen2.5_3B": "Qwen/Qwen2.5-3B-Instruct",
    "Qwen2.5_7B": "Qwen/Qwen2.5-7B-Instruct",
    "Qwen2.5_14B": "Qwen/Qwen2.5-14B-Instruct",
    "QwenVL2.5_3B": "Qwen/Qwen2.5-VL-3B-Instruct",
    "QwenVL2.5_7B": "Qwen/Qwen2.5-VL-7B-Instruct",
}
DEFAULT_TEXT, DEFAULT_VISION = "Qwen2.5_14B", "QwenVL2.5_7B"
MAX_NEW_TOKENS = 512
# The vision models see patches of 28 x 28 pixels as one token: 256 to 1280 tokens, as published.
MIN_PICTURE_AREA, MAX_PICTURE_AREA = 256 * 28 * 28, 1280 * 28 * 28
MAX_ASPECT = 100  # the vision models refuse 200


class LocalQwen:
    """A language model of this machine. `model`: a short name, a folder, or a repository of the Hugging Face hub."""

    name = "local_qwen"

    def __init__(self, *, model: str | None, device: str = "auto") -> None:
        self.model = model
        self.device = resolve_device(device)
        self._transformers = _import_transformers()
        self._loaded: tuple[str, Any, Any, Any] | None = None

    def model_for(self, *, has_image: bool) -> str:
        return self.model or (DEFAULT_VISION if has_image else DEFAULT_TEXT)

    def answer(self, question: Question) -> str:
        """The model's answer: at most 512 new tokens, the same for the same seed. Raises ExtensionError if there is none."""
        try:
            tokenizer, image_processor, model = self._load(has_image=question.image is not None)
            inputs = _inputs(question, tokenizer, image_processor, model)
            with _seeded(question.seed, self.device), torch.inference_mode():
                tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
        except torch.cuda.OutOfMemoryError as error:
            self.close()
            raise ExtensionError(f"{self.device} has too little memory free for the language model; choose a smaller one") from error
        except (OSError, ImportError, RuntimeError, ValueError) as error:  # what transformers raises for what it cannot use
            raise ExtensionError(f"the language model could not be used ({shortened(str(error))})") from error
        new_tokens = tokens[0, inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(new_tokens, skip_special_tokens=True)
        if not text.strip():
            raise ExtensionError("the language model answered with an empty text")
        return text

    def close(self) -> None:
        """Releases the model and its memory."""
        self._loaded = None
        return_memory(self.device)

    def _load(self, *, has_image: bool) -> tuple[Any, Any, Any]:
        """(tokenizer, image processor or None, model on the device)."""
        name = self.model_for(has_image=has_image)
        if self._loaded is None or self._loaded[0] != name:
            self.close()
            self._loaded = (name, *_load(self._transformers, name, self.device, has_image=has_image))
        _, tokenizer, image_processor, model = self._loaded
        _check_sight(name, sees=image_processor is not None, has_image=has_image)
        return tokenizer, image_processor, model


def _import_transformers() -> Any:
    try:
        return import_module("transformers")
    except ImportError as error:
        raise MissingExtraError("the method local_qwen", "transformers", "prompt") from error


def location(name: str) -> str:
    """The folder or repository that `name` means; RequestError for a folder that is not there."""
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    looks_like_path = name.startswith((".", "~", os.sep)) or Path(name).is_absolute() or name.count("/") != 1
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if looks_like_path:
        raise RequestError(f"there is no language model {name!r}; use one of {', '.join(SHORT_NAMES)}, a folder, or OWNER/NAME of the hub")
    return name


def _load(transformers: Any, name: str, device: torch.device, *, has_image: bool) -> tuple[Any, Any, Any]:
    where = location(name)
    config = transformers.AutoConfig.from_pretrained(where)
    sees = hasattr(config, "vision_config")
    _check_sight(name, sees=sees, has_image=has_image)  # before any weight is read
    factory = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    # AWQ's kernels take float16 only, whatever the file says.
    dtype = torch.float16 if "awq" in name.lower() else "auto"
    tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    image_processor = transformers.AutoImageProcessor.from_pretrained(where) if sees else None
    model = factory.from_pretrained(where, dtype=dtype).to(device).eval()
    return tokenizer, image_processor, model


def _check_sight(name: str, *, sees: bool, has_image: bool) -> None:
    if has_image and not sees:
        raise RequestError(f"the language model {name!r} cannot see pictures; choose a vision model, such as {DEFAULT_VISION}")


# -------------------------------------------------------------------------------------------------------- asking


def _inputs(question: Question, tokenizer: Any, image_processor: Any, model: Any) -> dict[str, torch.Tensor]:
    """The arguments of `generate`, on the device of the model.

    The picture's place in the text is widened here and not by transformers' combined processor, which needs torchvision for
    the sake of videos that are never shown to it.
    """
    text = tokenizer.apply_chat_template(_messages(question), tokenize=False, add_generation_prompt=True)
    pixels: Mapping[str, torch.Tensor] = {}
    if question.image is not None:
        pixels = image_processor(images=[_visible(question.image)], return_tensors="pt")
        mark = tokenizer.convert_ids_to_tokens(model.config.image_token_id)
        if mark not in text:
            raise ValueError("its chat template has no place for a picture")
        num_tokens = int(pixels["image_grid_thw"][0].prod()) // image_processor.merge_size**2
        text = text.replace(mark, mark * num_tokens, 1)
    tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"], **pixels}
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:  # transformers 5: 1 at tokens of a picture
        inputs["mm_token_type_ids"] = (tokens["input_ids"] == getattr(model.config, "image_token_id", -1)).long()
    return {name: value.to(model.device) for name, value in inputs.items()}


def _messages(question: Question) -> list[dict[str, Any]]:
    # Marks of the chat format inside a prompt would be read as marks.
    prompt = re.sub(r"<\|\w+\|>", " ", question.prompt)
    content: Any = prompt
    if question.image is not None:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
    return [{"role": "system", "content": question.instruction}, {"role": "user", "content": content}]


def _visible(image: Image.Image) -> Image.Image:
    """The picture at the sizes that the vision models take; a very thin one is cropped to its middle."""
    width, height = image.size
    crop_width, crop_height = min(width, height * MAX_ASPECT), min(height, width * MAX_ASPECT)
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    cropped = image.crop((left, top, left + crop_width, top + crop_height))
    return fit_area(cropped, least=MIN_PICTURE_AREA, most=MAX_PICTURE_AREA)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws inside come from `seed`; the generators outside are as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
