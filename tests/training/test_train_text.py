"""Training the text encoder on captions: labels say what a caption says, and the loss teaches binding."""
from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch

from kinograph.config import NANO_TEXT
from kinograph.models.t5 import TextEncoder, fresh_position_bias, init_weights
from kinograph.models.tokenizer import Tokenizer
from kinograph.training import train_text
from kinograph.training.captions import caption_of, labelled_caption
from kinograph.training.tokenizer import train_tokenizer
from kinograph.training.toybox import Description, describe, descriptions, sample_scenes
from kinograph.training.train_text import ATTRIBUTES, UNKNOWN
from kinograph.training.trainer import TrainConfig

SMALL = replace(NANO_TEXT, dim=64, dim_attn=64, dim_ffn=64)
BALL = Description(
    color="blue", shape="circle", motion="left", size="large", speed="slowly", background="pale yellow", pattern="plain", second=None
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([caption_of(scene, rng) for scene in descriptions(sample_scenes(2000, 0))], SMALL.vocab_size, folder)
    return Tokenizer(folder, SMALL.text_len)


def labels(scene: Description, *known: str) -> dict[str, str | None]:
    found = train_text.labels_of(scene, frozenset(known))
    return {name: None if label == UNKNOWN else words[label] for (name, words), label in zip(ATTRIBUTES.items(), found, strict=True)}


def test_what_a_caption_leaves_open_has_no_label() -> None:
    seen = labels(BALL, "color", "size")
    assert seen["color"] == "blue" and seen["size"] == "large"
    assert {name for name, value in seen.items() if value is None} == set(ATTRIBUTES) - {"color", "size"}


def test_a_second_object_is_three_attributes_and_its_absence_another() -> None:
    two = replace(BALL, second=("red", "star", "upper left"))
    assert [labels(two, "second")[f"second {part}"] for part in ("color", "shape", "corner")] == ["red", "star", "upper left"]
    assert labels(BALL, "second")["second shape"] == train_text.NONE


def test_what_is_known_is_in_the_words_and_what_is_not_is_not() -> None:
    rng, hidden = random.Random(1), 0
    for scene in descriptions(sample_scenes(1500, 5, second_rate=0.0)):
        text, known = labelled_caption(scene, rng)
        words = text.lower().replace(",", " ").replace(".", " ").split()
        clash = scene.background.split()[-1]
        if scene.color != clash:
            assert ("color" in known) == (scene.color in words), text
        if scene.speed:
            assert ("speed" in known) == bool({"slowly", "quickly", "fast"} & set(words)), text
        hidden += "background" not in known
    assert 0.02 * 1500 < hidden < 0.09 * 1500


def test_complete_captions_leave_neither_colour_nor_shape_nor_background_open() -> None:
    rng = random.Random(2)
    for scene in descriptions(sample_scenes(300, 6)):
        assert {"color", "shape", "background", "second"} <= labelled_caption(scene, rng, complete=True)[1]


def test_a_caption_is_the_same_with_and_without_its_labels() -> None:
    for seed in range(20):
        assert caption_of(BALL, random.Random(seed)) == labelled_caption(BALL, random.Random(seed))[0]


def test_descriptions_are_those_of_the_single_rows() -> None:
    scenes = sample_scenes(30, 3)
    assert descriptions(scenes) == [describe(scenes, index) for index in range(30)]


def test_fresh_heads_look_near_and_far() -> None:
    bias = fresh_position_bias(SMALL)
    assert bias.shape == (SMALL.num_buckets, SMALL.num_heads)
    half = SMALL.num_buckets // 2
    assert (bias[0] == 0).all() and (bias[1:half].diff(dim=0) < 0).all()  # the farther the key, the less
    assert torch.equal(bias[1], bias[half + 1]) and (bias[1].diff() > 0).all()  # both ways; later heads look farther


def test_colours_are_bound_to_objects_and_backgrounds(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Every caption has a twin of the same words with the colours exchanged: a bag of words is right in half of them."""
    shared = ("blue", "green", "yellow", "pink")
    pairs = [replace(BALL, color=color, background=f"pale {tone}") for color, tone in permutations(shared, 2)]
    torch.manual_seed(0)
    encoder = TextEncoder(SMALL)
    init_weights(encoder)
    training = train_text.prepare(replace(train_text.TextRecipe(), num_captions=8, num_eval=8, batch=48), encoder, tokenizer)
    training.captions, training.held_out = (train_text.captions_of(pairs * 30, tokenizer, random.Random(seed)) for seed in (0, 1))
    train_text.train(training, TrainConfig(budget_steps=180, warmup_steps=15))
    accuracy = training.accuracy()
    assert accuracy["color"] > 0.9 and accuracy["background"] > 0.9
    train_text.save(encoder, tmp_path)
    stored = train_text.load(tmp_path)
    assert all(torch.equal(stored[name], tensor) for name, tensor in encoder.state_dict().items())
