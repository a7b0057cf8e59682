"""Prompts to token ids: text repair, then the tokenizer of the checkpoint, an end token, padding."""
from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ftfy
import tokenizers
import torch
from torch import Tensor

from kinograph.errors import CheckpointError

PAD, END = 0, 1  # ids of the tokens "<pad>" and "</s>", which the encoders were trained with


class Tokens(NamedTuple):
    """Token ids of a batch of prompts."""

    ids: Tensor  # [B, text_len] int64; the real tokens of a row end with the end token, then padding
    mask: Tensor  # [B, text_len] bool, true at real tokens
    dropped: tuple[int, ...]  # per prompt: tokens beyond text_len, which were cut off


class Tokenizer:
    """The tokenizer in `folder`, which holds a `tokenizer.json`; each prompt becomes `text_len` ids.

    Raises `CheckpointError` if the file is missing, damaged, or has other special tokens than the encoder expects.
    """

    def __init__(self, folder: str | Path, text_len: int) -> None:
        self.folder = Path(folder)
        self.text_len = text_len
        self._tokenizer = _read(self.folder / "tokenizer.json")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special ones included; ids are smaller."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids, mask) of `prompts`; see `Tokens`."""
        tokens = self.encode(prompts)
        return tokens.ids, tokens.mask

    def encode(self, prompts: Sequence[str]) -> Tokens:
        """The cleaned prompts as tokens. What exceeds `text_len`, the end token included, is cut off and counted."""
        texts = [clean_prompt(prompt) for prompt in prompts]
        # The end token is added here, not by the file's own template, so that it survives truncation.
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]
        room = self.text_len - 1
        ids = torch.full((len(rows), self.text_len), PAD, dtype=torch.int64)
        mask = torch.zeros(len(rows), self.text_len, dtype=torch.bool)
        for i, row in enumerate(rows):
            kept = [*row[:room], END]
            ids[i, : len(kept)] = torch.tensor(kept)
            mask[i, : len(kept)] = True
        return Tokens(ids, mask, tuple(max(0, len(row) - room) for row in rows))


def clean_prompt(text: str) -> str:
    """`text` as the encoder was trained to read it: encoding damage and HTML escapes undone, whitespace collapsed.

    Full-width punctuation becomes ASCII and curly quotes straight (both are ftfy's defaults); case is kept.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def _read(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise CheckpointError(f"the tokenizer file {path} is missing; download the checkpoint's tokenizer folder again")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever is wrong with the file
        raise CheckpointError(f"the tokenizer file {path} is damaged ({error}); download it again") from error
    found = {token: tokenizer.token_to_id(token) for token in ("<pad>", "</s>")}
    if found != {"<pad>": PAD, "</s>": END}:
        raise CheckpointError(
            f"the tokenizer file {path} has the special tokens {found} where <pad> must be {PAD} and </s> {END}; "
            "it belongs to another model: use the one that came with the text encoder"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
