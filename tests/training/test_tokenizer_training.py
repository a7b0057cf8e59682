import json

import pytest
import tokenizers

from kinograph.models.tokenizer import END, PAD, Tokenizer
from kinograph.training.tokenizer import train_tokenizer

CAPTIONS = [
    f"a {size} {colour} {shape} moves to the {side}"
    for size in ("small", "large")
    for colour in ("red", "green", "pale blue")
    for shape in ("circle", "square", "star")
    for side in ("left", "right")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nano")
    train_tokenizer(CAPTIONS, 1024, folder)
    return folder


@pytest.fixture(scope="module")
def raw(folder):
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_known_words_are_one_token_each(folder):
    _, mask = Tokenizer(folder, 64)(CAPTIONS)
    assert mask.sum(dim=1).tolist() == [len(caption.split()) + 1 for caption in CAPTIONS]


@pytest.mark.parametrize("text", ["xylophone", "Zürich, 42% — ok?", "一只猫", "🙂"])
def test_words_never_seen_are_spelled_out(raw, text):
    encoding = raw.encode(text)
    assert raw.token_to_id("<unk>") not in encoding.ids
    assert raw.decode(encoding.ids).strip() == text.lower()


def test_case_is_dropped(folder):
    ids, _ = Tokenizer(folder, 64)(["A Red CIRCLE", "a red circle"])
    assert ids[0].tolist() == ids[1].tolist()


def test_special_tokens(folder, raw):
    assert [raw.token_to_id(token) for token in ("<pad>", "</s>", "<unk>")] == [PAD, END, 2]
    assert raw.encode("a red star").ids[-1] == END
    assert json.loads((folder / "special_tokens_map.json").read_text())["eos_token"] == "</s>"
    assert json.loads((folder / "tokenizer_config.json").read_text())["pad_token"] == "<pad>"


def test_size_is_bounded(tmp_path, folder):
    assert Tokenizer(folder, 8).vocab_size <= 1024
    train_tokenizer(CAPTIONS, 270, tmp_path)
    assert Tokenizer(tmp_path, 8).vocab_size == 270
    with pytest.raises(ValueError, match="at least 259"):
        train_tokenizer(CAPTIONS, 100, tmp_path)


def test_training_is_repeatable(tmp_path, folder):
    train_tokenizer(reversed(CAPTIONS), 1024, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
