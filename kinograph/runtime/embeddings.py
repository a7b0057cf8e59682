"""Embedded prompts, kept: each text goes through the text encoder once."""
from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kinograph.checkpoints.fingerprint import fingerprint
from kinograph.checkpoints.layout import TEXT_ENCODER
from kinograph.media.files import PendingOutput
from kinograph.models.t5 import EmbeddedPrompts, TextEncoder, encode_prompts
from kinograph.runtime.placement import Components

logger = logging.getLogger(__name__)


class EmbeddingCache:
    """The embedded prompts of the text encoder of `components`, in memory and, if `folder` is given, in files there.

    Every prompt is encoded by itself, so that its embedding does not depend on what it was asked for together with. A file
    serves only the same text with the same encoder, tokenizer and rounding; one that is damaged or cannot be written costs
    no more than encoding again.
    """

    def __init__(self, components: Components, folder: Path | None = None) -> None:
        self._components = components
        self._folder = folder
        self._kept: dict[str, tuple[Tensor, int]] = {}  # prompt -> (its real rows [n, dim] on the CPU, tokens dropped)

    def embed(self, prompts: Sequence[str]) -> EmbeddedPrompts:
        """`prompts` as `encode_prompts` gives them, on the CPU. The text encoder is placed only if one of them is new."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if not self._recall(prompt)]
        if missing:
            with self._components.place(TEXT_ENCODER) as encoder:
                for prompt in missing:
                    embedded = encode_prompts(cast(TextEncoder, encoder), self._components.tokenizer, [prompt])
                    self._keep(prompt, _real_rows(embedded.embeddings[0]), embedded.dropped[0])
        text_len = self._components.spec.text.text_len
        kept = [self._kept[prompt] for prompt in prompts]
        return EmbeddedPrompts(
            torch.stack([F.pad(rows, (0, 0, 0, text_len - len(rows))) for rows, _ in kept]), tuple(dropped for _, dropped in kept)
        )

    def _recall(self, prompt: str) -> bool:
        """Whether the prompt is in memory, after a look into the folder."""
        if prompt not in self._kept and self._folder is not None:
            path = self._file(self._folder, prompt)
            try:
                with safe_open(path, framework="pt") as file:
                    self._kept[prompt] = (file.get_tensor("rows"), int(file.metadata()["dropped"]))
            except (OSError, SafetensorError, KeyError, TypeError, ValueError):
                pass  # absent, or damaged: it will be encoded and written again
        return prompt in self._kept

    def _keep(self, prompt: str, rows: Tensor, dropped: int) -> None:
        self._kept[prompt] = (rows, dropped)
        if self._folder is None:
            return
        pending = PendingOutput(self._file(self._folder, prompt))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file({"rows": rows}, pending.partial, metadata={"dropped": str(dropped)})
            pending.commit(overwrite=True)
        except (OSError, SafetensorError) as error:
            pending.discard()
            logger.warning("the embedding of a prompt could not be kept in %s (%s)", self._folder, error)

    def _file(self, folder: Path, prompt: str) -> Path:
        text = json.dumps([*self._encoder_identity, prompt])
        return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"

    @cached_property
    def _encoder_identity(self) -> list[str]:
        """All that decides an embedding besides the prompt: weights, tokenizer, and what rounding depends on."""
        components = self._components
        runtime = components.describe()
        return [
            components.fingerprints()[TEXT_ENCODER],
            fingerprint(components.tokenizer.folder / "tokenizer.json"),
            str(components.spec.text.text_len),
            str(runtime["text_dtype"]),
            components.text_device.type,
        ]


def _real_rows(embedding: Tensor) -> Tensor:
    """[text_len, dim] without the zero rows of padding at its end, on the CPU."""
    real = embedding.any(dim=1).nonzero()
    count = int(real[-1]) + 1 if len(real) else 0
    return embedding[:count].cpu().contiguous()
