import json

import pytest
import tokenizers
from reference import case

from kinograph.errors import CheckpointError
from kinograph.models.tokenizer import Tokenizer, clean_prompt


def write_tokenizer(folder, pieces=("<pad>", "</s>", "<s>", "<unk>", "▁a", "▁red", "▁ball", "▁B", "all")):
    """A small tokenizer of the published kind: Unigram over pieces that carry their leading space."""
    model = tokenizers.models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=3)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_padding(length=3)  # as a file may bring along; it must not matter
    tokenizer.enable_truncation(2)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("pair", case("prompt_clean")["pairs"], ids=lambda pair: repr(pair["clean"]))
def test_published_cleaning(pair):
    assert clean_prompt(pair["raw"]) == pair["clean"]


def test_ids_end_token_and_padding(tmp_path):
    write_tokenizer(tmp_path)
    ids, mask = Tokenizer(tmp_path, 6)(["  a  red\nball ", "", "a Ball"])
    assert ids.tolist() == [[4, 5, 6, 1, 0, 0], [1, 0, 0, 0, 0, 0], [4, 7, 8, 1, 0, 0]]  # case is kept
    assert mask.tolist() == [[True] * n + [False] * (6 - n) for n in (4, 1, 4)]


def test_truncation_keeps_the_end_token_and_is_counted(tmp_path):
    write_tokenizer(tmp_path)
    tokens = Tokenizer(tmp_path, 3).encode(["a red ball", "a red", "a a a a a"])
    assert tokens.ids.tolist() == [[4, 5, 1], [4, 5, 1], [4, 4, 1]]
    assert tokens.dropped == (1, 0, 3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing; download"):
        Tokenizer(tmp_path, 8)


@pytest.mark.parametrize("content", ["", "{", "version https://git-lfs.github.com/spec/v1", json.dumps({"model": None})])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged .* download it again"):
        Tokenizer(tmp_path, 8)


def test_other_special_tokens_are_refused(tmp_path):
    write_tokenizer(tmp_path, ("</s>", "<pad>", "<s>", "<unk>", "▁a"))
    with pytest.raises(CheckpointError, match="<pad> must be 0 and </s> 1"):
        Tokenizer(tmp_path, 8)
