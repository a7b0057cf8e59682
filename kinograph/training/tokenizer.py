"""Trains the small tokenizer of the nano models."""
from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2
NUM_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | Path) -> None:
    """Writes to `folder` a tokenizer of at most `vocab_size` tokens, learned from `texts`.

    Byte-pair encoding above an alphabet of all 256 bytes: words of `texts` become single tokens, most frequent first,
    and any other text is spelled out; nothing is unknown. Letter case is dropped. The folder loads with
    `kinograph.models.tokenizer.Tokenizer`, and as any fast tokenizer of the transformers library.
    """
    smallest = len(SPECIAL_TOKENS) + NUM_BYTES
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest}, all bytes and the special tokens; got {vocab_size}")
    tokenizer = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    _write(tokenizer, Path(folder))


def _untrained() -> Tokenizer:
    _, end, _ = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # The space before a word is part of it: with one before the first word too, a word is the same token everywhere.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, SPECIAL_TOKENS.index(end))]
    )
    return tokenizer


def _write(tokenizer: Tokenizer, folder: Path) -> None:
    pad, end, unknown = SPECIAL_TOKENS
    roles = {"pad_token": pad, "eos_token": end, "unk_token": unknown}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "special_tokens_map.json", roles)
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **roles})


def _write_json(path: Path, content: dict[str, str]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
