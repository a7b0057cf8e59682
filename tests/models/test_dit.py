"""The diffusion transformer: stored results of the published model, its parameter names, its seams and its precision."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import pytest
import torch
from reference import assert_close, case, manifest, tensors
from seeded import load_seeded
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from kinograph.config import MODELS, DiTConfig, tiny
from kinograph.models import dit as dit_module
from kinograph.models.dit import DiT, Inputs, flops, init_weights, patch_grid, patchify, unpatchify

GOLDEN = ("dit_t2v", "dit_t2v_512", "dit_ti2v", "dit_i2v")


def golden_model(description: dict) -> DiT:
    sizes = {field.name: description["config"][field.name] for field in fields(DiTConfig)}
    config = DiTConfig(**{**sizes, "patch_size": tuple(sizes["patch_size"])})
    return load_seeded(DiT(config), description["weights"]["seed"]).eval()


def golden_sample(data: dict, index: int, text_len: int, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, Inputs]:
    """x, t per token, and the rest, of one sample of a golden batch, without the padding of the batch."""
    context = data[f"in.context.{index}"]
    text = torch.zeros(1, text_len, context.shape[1])
    text[0, : len(context)] = context
    channels = data.get(f"in.y.{index}")
    x, t = data[f"in.x.{index}"][None], data["in.t"][index : index + 1, :num_tokens]
    return x, t, Inputs(text=text, channels=None if channels is None else channels[None])


@contextmanager
def outputs_of(model: DiT, names: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """What the named submodules return while the context is open."""
    outputs = dict.fromkeys(names)

    def keep(name: str) -> RemovableHandle:
        return model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: outputs.update({name: output}))

    handles = [keep(name) for name in names]
    yield outputs
    for handle in handles:
        handle.remove()


def small(seed: int = 0, **sizes: int) -> tuple[DiT, torch.Tensor, Inputs]:
    """A tiny seeded model, two samples of latents (3 frames of 2 x 3 tokens) and their text."""
    torch.manual_seed(seed)
    model = load_seeded(DiT(tiny(MODELS["ti2v-5B"]).dit), seed)
    config = model.config
    return model, torch.randn(2, config.in_dim, 3, 4, 6), Inputs(text=torch.randn(2, config.text_len, config.text_dim))


# ------------------------------------------------------------------------------------------------ published results


@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_golden(name):
    description, data = case(name), tensors(name)
    model = golden_model(description)
    for i, num_tokens in enumerate(description["tokens_per_sample"]):
        x, t, inputs = golden_sample(data, i, model.config.text_len, num_tokens)
        stored = [key.removeprefix("mid.") for key in data if key.startswith("mid.")]
        with outputs_of(model, [key.replace("block.", "blocks.") for key in stored]) as outputs:
            velocity = model(x, t, **vars(inputs))
        assert_close(velocity[0], data[f"out.{i}"], description["tolerance"], f"{name} out.{i}")
        for key, output in zip(stored, outputs.values()):
            expected = data[f"mid.{key}"][i]
            output = output[0, [0, -1]] if "time" in key else output[0, : len(expected)]
            assert_close(output, expected, description["tolerance"], f"{name} {key} of sample {i}")


@pytest.mark.parametrize("name", ["dit_t2v", "dit_ti2v"])
@torch.no_grad()
def test_fewer_rows_than_tokens_give_the_same(name):
    """A timestep per token, per frame and (where it is one) per sample are the same model."""
    description, data = case(name), tensors(name)
    model = golden_model(description)
    x, t, inputs = golden_sample(data, 0, model.config.text_len, description["tokens_per_sample"][0])
    per_frame = t.view(1, x.shape[2], -1)[:, :, 0]
    assert_close(model(x, per_frame, **vars(inputs))[0], data["out.0"], description["tolerance"])
    if name == "dit_t2v":
        assert_close(model(x, t[:, 0], **vars(inputs))[0], data["out.0"], description["tolerance"])


@pytest.mark.parametrize("name", ["ti2v-5B", "t2v-A14B", "i2v-A14B"])
def test_parameter_names_and_shapes_are_the_published_ones(name):
    with torch.device("meta"):
        model = DiT(MODELS[name].dit)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert [(key, tuple(value.shape)) for key, value in model.state_dict().items()] == list(manifest(f"{name}.dit").items())


# ---------------------------------------------------------------------------------------------------------- contract


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix():
    model, x, inputs = small()
    t = torch.tensor([900.0, 30.0])
    together = model(x, t, inputs.text)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], inputs.text[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_integer_timesteps_and_half_precision_latents_are_taken():
    model, x, inputs = small()
    expected = model(x, torch.tensor([999.0, 3.0]), inputs.text)
    assert torch.equal(model(x, torch.tensor([999, 3]), inputs.text), expected)
    assert model(x.bfloat16(), torch.tensor([999, 3]), inputs.text.bfloat16()).dtype is torch.float32


@torch.no_grad()
def test_bfloat16_weights_keep_the_residual_stream_and_the_head_in_float32():
    model, x, inputs = small()
    expected = model(x, torch.tensor([999.0, 3.0]), inputs.text)
    model.bfloat16()
    with outputs_of(model, ["blocks.0.self_attn", "blocks.0", "time_projection", "head.head"]) as outputs:
        actual = model(x, torch.tensor([999.0, 3.0]), inputs.text)
    assert {name: output.dtype for name, output in outputs.items()} == {
        "blocks.0.self_attn": torch.bfloat16,
        "blocks.0": torch.float32,
        "time_projection": torch.float32,
        "head.head": torch.float32,
    }
    assert (actual - expected).norm() / expected.norm() < 0.03


def test_wrong_channels_are_named():
    model, x, inputs = small()
    with pytest.raises(ValueError, match="takes 48 channels; got 48 of latents and 20 of conditioning"):
        model(x, torch.zeros(2), inputs.text, channels=torch.zeros(2, 20, 3, 4, 6))


def test_every_parameter_gets_a_gradient():
    model, x, inputs = small()
    model(x, torch.tensor([500.0, 20.0]), inputs.text).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_one_graph_for_the_compiler():
    """No break, so nothing in forward waits for a value; the compiled arithmetic (real, not complex) agrees."""
    model, x, inputs = small()
    t = torch.tensor([[900.0, 30.0, 30.0], [20.0, 10.0, 10.0]])
    expected = model(x, t, inputs.text)
    torch.compiler.reset()
    actual = torch.compile(model, backend="eager", fullgraph=True)(x, t, inputs.text)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_patches_and_back():
    x = torch.randn(2, 5, 3, 4, 6)
    patches, grid = patchify(x, (1, 2, 2)), patch_grid(x, (1, 2, 2))
    assert grid == (3, 2, 3)
    channel_fastest = patches.unflatten(2, (5, 4)).transpose(2, 3).flatten(2)
    assert torch.equal(unpatchify(channel_fastest, grid, (1, 2, 2)), x)


def test_patch_embedding_is_the_convolution():
    model, x, _ = small()
    expected = torch.nn.Conv3d.forward(model.patch_embedding, x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.patch_embedding(x), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- seams


@torch.no_grad()
def test_attention_is_a_seam():
    model, x, inputs = small()
    calls = []
    for block in model.blocks:
        for module in (block.self_attn, block.cross_attn):
            module.attend = lambda q, k, v, kv_len=None: calls.append((k.shape[1], kv_len)) or q
    model(x, torch.zeros(2), inputs.text)
    assert calls == [(18, 18), (32, None)] * 2


class PaddedSequence:
    """All tokens on one rank, padded as a sequence-parallel object pads them."""

    padding = 2

    def shard(self, x, num_tokens):
        if x.shape[1] == 1:
            return x
        x = x.repeat_interleave(num_tokens // x.shape[1], dim=1)
        return torch.cat([x, x.new_zeros(x.shape[0], self.padding, *x.shape[2:])], dim=1)

    def gather(self, x, num_tokens):
        return x[:, :num_tokens]


@pytest.mark.parametrize("t", [[900.0, 30.0], [[0.0, 900.0, 900.0], [0.0, 30.0, 30.0]]], ids=["per sample", "per frame"])
@torch.no_grad()
def test_padding_of_the_sequence_changes_nothing(t):
    model, x, inputs = small()
    expected = model(x, torch.tensor(t), inputs.text)
    model.tokens = PaddedSequence()
    torch.testing.assert_close(model(x, torch.tensor(t), inputs.text), expected, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------- initialisation and cost


def test_an_untrained_model_predicts_zero():
    model, x, inputs = small()
    init_weights(model, generator=torch.Generator().manual_seed(3))
    assert not model(x, torch.zeros(2), inputs.text).any()
    block, dim = model.blocks[1], model.config.dim
    assert torch.equal(block.norm3.weight, torch.ones(dim)) and not block.norm3.bias.any() and not block.ffn[0].bias.any()
    assert block.modulation.std().item() == pytest.approx(dim**-0.5, rel=0.2)
    again = DiT(model.config)
    init_weights(again, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


@torch.no_grad()
def test_flops_are_those_that_run():
    model, x, inputs = small()
    for block in model.blocks:
        for module in (block.self_attn, block.cross_attn):
            module.attend = lambda q, k, v, kv_len=None: dit_module.attention(q, k, v, implementation="math")
    with FlopCounterMode(display=False) as counter:
        model(x[:1], torch.zeros(1), inputs.text[:1])
    assert flops(model.config, 18) == counter.get_total_flops()
