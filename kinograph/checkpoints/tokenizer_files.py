"""Tokenizers as they come: a folder with tokenizer.json or spiece.model, or bytes of either inside a text encoder's file.

`Tokenizer` reads tokenizer.json; a SentencePiece model is rewritten as one. Its format is protobuf, of which these fields
matter (https://github.com/google/sentencepiece, sentencepiece_model.proto):

    ModelProto       1 pieces (repeated), 2 trainer_spec, 3 normalizer_spec
    SentencePiece    1 piece, 2 score, 3 type
    TrainerSpec      3 model_type (1: unigram), 35 byte_fallback
    NormalizerSpec   2 precompiled_charsmap
"""
from __future__ import annotations

import struct
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from kinograph.checkpoints.files import describe, read_tensor
from kinograph.checkpoints.recognise import EMBEDDED_TOKENIZERS
from kinograph.errors import CheckpointError
from kinograph.models.tokenizer import Tokenizer

TOKENIZER_JSON, SPIECE = "tokenizer.json", "spiece.model"
_FILES = dict(zip(EMBEDDED_TOKENIZERS, (SPIECE, TOKENIZER_JSON)))
UNIGRAM = 1
UNKNOWN, CONTROL = 2, 3  # types of pieces


def open_tokenizer(source: Path, text_len: int) -> Tokenizer:
    """The tokenizer at `source`: a folder, one of its files, or a text encoder's file with the tokenizer inside."""
    folder = source if source.is_dir() else source.parent
    if (source.is_dir() or source.name == TOKENIZER_JSON) and (folder / TOKENIZER_JSON).exists():
        return Tokenizer(folder, text_len)
    work = tempfile.TemporaryDirectory(prefix="kinograph-tokenizer-")
    write_tokenizer_json(source, Path(work.name))
    tokenizer = Tokenizer(work.name, text_len)
    weakref.finalize(tokenizer, work.cleanup)  # `tokenizer.folder` exists as long as the tokenizer
    return tokenizer


def write_tokenizer_json(source: Path, folder: Path) -> None:
    """tokenizer.json in `folder`, from whatever `source` is."""
    file, data = tokenizer_bytes(source)
    if file == TOKENIZER_JSON:
        (folder / TOKENIZER_JSON).write_bytes(data)
    else:
        from_spiece(data, where=source).save(str(folder / TOKENIZER_JSON))


def tokenizer_bytes(source: Path) -> tuple[str, bytes]:
    """(TOKENIZER_JSON or SPIECE, contents of that file) of the tokenizer at `source`; spiece.model where there are both."""
    if source.is_dir():
        found = next((source / name for name in (SPIECE, TOKENIZER_JSON) if (source / name).exists()), None)
        if found is None:
            raise CheckpointError(
                f"{source} has neither {TOKENIZER_JSON} nor {SPIECE}; give the tokenizer folder of the published checkpoint"
            )
        return found.name, found.read_bytes()
    if source.suffix in (".json", ".model"):
        return (TOKENIZER_JSON if source.suffix == ".json" else SPIECE), source.read_bytes()
    embedded = next((name for name in EMBEDDED_TOKENIZERS if name in describe(source)), None)
    if embedded is None:
        raise CheckpointError(f"{source} has no tokenizer inside; give a tokenizer folder with --tokenizer")
    return _FILES[embedded], bytes(read_tensor(source, embedded).numpy())


def from_spiece(data: bytes, *, where: Path) -> tokenizers.Tokenizer:
    """The tokenizer that a SentencePiece unigram model describes; CheckpointError for damaged ones and other kinds."""
    try:
        return _convert(data)
    except (ValueError, IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{where} has a SentencePiece model that cannot be read ({error}); use the published one") from error


def _convert(data: bytes) -> tokenizers.Tokenizer:
    pieces, charsmap, byte_fallback = [], b"", False
    for number, value in _fields(data):
        if number == 1:
            fields = dict(_fields(value))
            score = struct.unpack("<f", fields.get(2, b"\0\0\0\0"))[0]
            pieces.append((fields[1].decode("utf-8"), score, fields.get(3, 1)))
        elif number == 2:
            trainer = dict(_fields(value))
            byte_fallback = bool(trainer.get(35, 0))
            if trainer.get(3, UNIGRAM) != UNIGRAM:
                raise ValueError("it is not a unigram model")
        elif number == 3:
            charsmap = dict(_fields(value)).get(2, b"")
    kinds = [kind for _, _, kind in pieces]
    model = models.Unigram([(piece, score) for piece, score, _ in pieces], unk_id=kinds.index(UNKNOWN), byte_fallback=byte_fallback)
    tokenizer = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap), spaces] if charsmap else [spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([piece for piece, _, kind in pieces if kind in (UNKNOWN, CONTROL)])
    return tokenizer


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of each field of a protobuf message: an int, or bytes for fixed-size and nested fields."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + length > len(data):
            raise ValueError("it is cut off")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
