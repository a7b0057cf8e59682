"""What goes to a language model and what comes back, whatever runs it."""
from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import Image

MAX_SHOWN = 200  # characters of a service's own message that a notice repeats


class ExtensionError(Exception):
    """The language model gave no answer; the message completes "the prompt was not extended: ..."."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One instruction, one prompt, and the picture if there is one."""

    instruction: str
    prompt: str
    image: Image.Image | None = None
    seed: int = 0


def clean_answer(text: str) -> str:
    """The answer as a prompt: one line, without the model's reasoning and without quotation marks around it.

    The published code keeps line breaks of a picture's description as the two characters `\\n`; no text encoder was
    trained on those, so they become spaces here.
    """
    # Reasoning models think aloud between these tags; some servers leave out the opening one.
    text = re.sub(r"^.*</think>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s+", " ", text).strip()
    for opening, closing in ('""', "“”", "「」", "''"):
        inside = text[1:-1]
        if len(text) > 1 and text[0] == opening and text[-1] == closing and opening not in inside and closing not in inside:
            return inside.strip()
    return text


def fit_area(image: Image.Image, *, least: int = 0, most: int) -> Image.Image:
    """RGB, with an area of `least` to `most` pixels and the aspect kept; one that fits already is not resampled."""
    image = image.convert("RGB")
    area = image.width * image.height
    target = min(max(area, least), most)
    if target == area:
        return image
    scale = (target / area) ** 0.5
    width = max(1, int(image.width * scale))
    height = max(1, min(int(image.height * scale), most // width))  # a side held at one pixel leaves the other too long
    return image.resize((min(width, most // height), height), Image.Resampling.LANCZOS)


def shortened(text: str) -> str:
    """`text` on one line, short enough for a notice."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 3] + "..."
