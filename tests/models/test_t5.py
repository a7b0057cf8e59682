import pytest
import torch
from reference import assert_close, case, manifest, tensors
from seeded import load_seeded

from kinograph.config import UMT5_XXL, TextConfig
from kinograph.errors import CheckpointError
from kinograph.models.t5 import TextEncoder, encode_prompts, init_weights, relative_position_bucket
from kinograph.models.tokenizer import Tokenizer
from kinograph.training.tokenizer import train_tokenizer

PROMPTS = ["a red circle moves to the right", "", "a blue square"]


def tiny(**changes) -> TextConfig:
    sizes = {"vocab_size": 300, "dim": 32, "dim_attn": 48, "dim_ffn": 40, "num_heads": 4, "num_layers": 2, "text_len": 24}
    return TextConfig(**{**sizes, **changes})


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_seeded(TextEncoder(tiny()), seed=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(PROMPTS, 290, folder)
    return Tokenizer(folder, 24)


def golden_encoder() -> TextEncoder:
    c = case("t5_tiny")["config"]
    sizes = {name: c[name] for name in ("dim", "dim_attn", "dim_ffn", "num_heads", "num_layers", "num_buckets")}
    config = TextConfig(vocab_size=c["vocab"], text_len=160, **sizes)
    return load_seeded(TextEncoder(config), case("t5_tiny")["weights"]["seed"])


def test_published_names_and_shapes():
    with torch.device("meta"):
        encoder = TextEncoder(UMT5_XXL)
    assert {name: tuple(value.shape) for name, value in encoder.state_dict().items()} == manifest("umt5-xxl-encoder")


def test_golden_embeddings():
    stored = tensors("t5_tiny")
    with torch.no_grad():
        out = golden_encoder()(stored["in.ids"], stored["in.mask"])
    for i in range(2):
        expected = stored[f"out.context.{i}"]
        assert_close(out[i, : len(expected)], expected, case("t5_tiny")["tolerance"], f"sample {i}")
        assert (out[i, len(expected) :] == 0).all()


def test_golden_buckets():
    stored = tensors("t5_tiny")
    assert torch.equal(relative_position_bucket(stored["in.relative_position"], 32, 128), stored["out.bucket"])


def test_bfloat16_stays_near_float32():
    stored = tensors("t5_tiny")
    with torch.no_grad():
        exact = golden_encoder()(stored["in.ids"], stored["in.mask"])
        out = golden_encoder().bfloat16()(stored["in.ids"], stored["in.mask"])
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).norm() / exact.norm() < 0.05


def test_float16_stays_finite_where_the_stream_overflows(encoder):
    wild = load_seeded(TextEncoder(tiny()), seed=3)
    with torch.no_grad():
        wild.blocks[0].ffn.fc2.weight.mul_(1e6).clamp_(-6e4, 6e4)
        out = wild.half()(torch.arange(2, 26)[None], torch.ones(1, 24))
    assert torch.isfinite(out).all()


def test_padding_has_no_influence(encoder):
    ids, mask = torch.randint(2, 300, (1, 24), generator=torch.Generator().manual_seed(0)), torch.zeros(1, 24)
    mask[:, :9] = 1
    with torch.no_grad():
        long, short = encoder(ids, mask), encoder(ids[:, :9], mask[:, :9])
    torch.testing.assert_close(long[:, :9], short)


def test_prompts_are_padded_with_zeros(encoder, tokenizer):
    embeddings, dropped = encode_prompts(encoder, tokenizer, PROMPTS)
    _, mask = tokenizer(PROMPTS)
    assert embeddings.shape == (3, 24, 32) and not embeddings.requires_grad and dropped == (0, 0, 0)
    assert torch.equal(embeddings.abs().sum(-1) > 0, mask)
    assert mask[1].sum() == 1  # the empty prompt is its end token
    for i, prompt in enumerate(PROMPTS):
        alone = encode_prompts(encoder, tokenizer, [prompt]).embeddings[0]
        torch.testing.assert_close(alone, embeddings[i])


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    small = TextEncoder(tiny(vocab_size=97))
    with pytest.raises(CheckpointError, match="different models"):
        encode_prompts(small, tokenizer, ["a"])


def test_fresh_weights_keep_unit_size_and_train():
    encoder = TextEncoder(tiny(num_layers=4))
    init_weights(encoder, generator=torch.Generator().manual_seed(0))
    out = encoder(torch.randint(2, 300, (4, 24)), torch.ones(4, 24))
    assert 0.8 < out.detach().square().mean().sqrt() < 1.2
    out.square().sum().backward()
    used = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    assert used == {name for name, _ in encoder.named_parameters()}


def test_the_same_seed_gives_the_same_fresh_weights():
    a, b = TextEncoder(tiny()), TextEncoder(tiny())
    for encoder in (a, b):
        init_weights(encoder, generator=torch.Generator().manual_seed(7))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
