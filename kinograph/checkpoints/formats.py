"""Names of the same tensors in other files, as tables from our module names (the published ones) to theirs.

    dit_names        WanTransformer3DModel of diffusers
    vae_names        AutoencoderKLWan of diffusers, both versions
    t5_names         UMT5EncoderModel of transformers; single files for ComfyUI have these too
    t5_gguf_names    the t5encoder architecture of llama.cpp

A table has one row for each module that holds tensors, and for each parameter that lies in no such module. What follows
a module's name, such as `.weight` or `.scale_weight`, is the same on both sides. Every table is one to one: its inverse
is `inverse(table)`. Single files and GGUF files of the transformer and the VAE have the published names, at most with a
prefix, which `without_prefix` removes.

`renamed` and `without_prefix` give a `Step`: they map streams of (name, tensor), for loading and writing alike.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count

from kinograph.checkpoints.storage import Pair, Step
from kinograph.config import VAEConfig

Names = dict[str, str]

PREFIXES = ("model.diffusion_model.", "diffusion_model.")  # of the transformer inside a single file

# ----------------------------------------------------------------------------------------------------- transformer

_DIT_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_DIT_BLOCK = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",  # the one with weights; it stands before the cross-attention
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _ATTENTION.items()},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


def dit_names(num_layers: int) -> Names:
    """Module names of the transformer -> those of diffusers."""
    return {**_DIT_OUTSIDE, **_in_blocks("blocks.{}", "blocks.{}", _DIT_BLOCK, num_layers)}


# ------------------------------------------------------------------------------------------------------------ VAE

_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2", "shortcut": "conv_shortcut"}
_RESAMPLER = {"resample.1": "resample.1", "time_conv": "time_conv"}
_FRAME_ATTENTION = {"norm": "norm", "to_qkv": "to_qkv", "proj": "proj"}


def vae_names(config: VAEConfig) -> Names:
    """Module names of the VAE -> those of diffusers. Modules that a level happens not to have get rows too."""
    names = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        names |= {f"{half}.conv1": f"{half}.conv_in", f"{half}.head.0": f"{half}.norm_out", f"{half}.head.2": f"{half}.conv_out"}
        names |= _within(f"{half}.middle.0", f"{half}.mid_block.resnets.0", _RESIDUAL)
        names |= _within(f"{half}.middle.1", f"{half}.mid_block.attentions.0", _FRAME_ATTENTION)
        names |= _within(f"{half}.middle.2", f"{half}.mid_block.resnets.1", _RESIDUAL)
    layers = _flat_layers(config) if config.version == "2.1" else _nested_layers(config)
    for ours, theirs, inside in layers:
        names |= _within(ours, theirs, inside)
    return names


def _flat_layers(config: VAEConfig) -> Iterator[tuple[str, str, Names]]:
    """2.1: one list of layers for all levels; diffusers keeps that list in the encoder and has levels in the decoder."""
    index = count()
    for resamples in _resamples(config):
        for inside in [_RESIDUAL] * config.num_res_blocks + [_RESAMPLER] * resamples:
            i = next(index)
            yield f"encoder.downsamples.{i}", f"encoder.down_blocks.{i}", inside
    index = count()
    for level, resamples in enumerate(_resamples(config)):
        for j in range(config.num_res_blocks + 1):
            yield f"decoder.upsamples.{next(index)}", f"decoder.up_blocks.{level}.resnets.{j}", _RESIDUAL
        if resamples:
            yield f"decoder.upsamples.{next(index)}", f"decoder.up_blocks.{level}.upsamplers.0", _RESAMPLER


def _nested_layers(config: VAEConfig) -> Iterator[tuple[str, str, Names]]:
    """2.2: a list of layers in each level, on both sides."""
    for level, resamples in enumerate(_resamples(config)):
        for down, num_blocks in ((True, config.num_res_blocks), (False, config.num_res_blocks + 1)):
            ours = f"encoder.downsamples.{level}.downsamples" if down else f"decoder.upsamples.{level}.upsamples"
            theirs = f"encoder.down_blocks.{level}" if down else f"decoder.up_blocks.{level}"
            for j in range(num_blocks):
                yield f"{ours}.{j}", f"{theirs}.resnets.{j}", _RESIDUAL
            if resamples:
                yield f"{ours}.{num_blocks}", f"{theirs}.{'downsampler' if down else 'upsampler'}", _RESAMPLER


def _resamples(config: VAEConfig) -> list[bool]:
    """For each level, whether it ends in a resampler: all do but the last."""
    return [True] * len(config.temporal_down) + [False]


# --------------------------------------------------------------------------------------------------- text encoder

_T5_ATTENTION = {f"attn.{x}": f"layer.0.SelfAttention.{x}" for x in "qkvo"}
_T5_BLOCK = {
    "norm1": "layer.0.layer_norm",
    **_T5_ATTENTION,
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_T5_GGUF_BLOCK = {
    "norm1": "attn_norm",
    **{f"attn.{x}": f"attn_{x}" for x in "qkvo"},
    "pos_embedding.embedding": "attn_rel_b",
    "norm2": "ffn_norm",
    "ffn.gate.0": "ffn_gate",
    "ffn.fc1": "ffn_up",
    "ffn.fc2": "ffn_down",
}
T5_TWIN = "encoder.embed_tokens.weight"  # transformers has the token embedding under a second name, and may store it


def t5_names(num_layers: int) -> Names:
    """Module names of the text encoder -> those of transformers, whose second name `T5_TWIN` is not in the table."""
    outside = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
    return {**outside, **_in_blocks("blocks.{}", "encoder.block.{}", _T5_BLOCK, num_layers)}


def t5_gguf_names(num_layers: int) -> Names:
    """Module names of the text encoder -> those of llama.cpp."""
    outside = {"token_embedding": "token_embd", "norm": "enc.output_norm"}
    return {**outside, **_in_blocks("blocks.{}", "enc.blk.{}", _T5_GGUF_BLOCK, num_layers)}


def without_twin(stream: Iterable[Pair]) -> Iterator[Pair]:
    """A `Step`: the token embedding of transformers once, as `shared.weight`, if it comes under either name or under both."""
    seen = False
    for name, tensor in stream:
        if name in (T5_TWIN, "shared.weight"):
            if seen:
                continue
            seen, name = True, "shared.weight"
        yield name, tensor


# ----------------------------------------------------------------------------------------------------- using tables


def inverse(names: Mapping[str, str]) -> Names:
    """The table in the other direction."""
    return {theirs: ours for ours, theirs in names.items()}


def rename(name: str, names: Mapping[str, str]) -> str:
    """The tensor `name` by the table; a name that is in no row comes back as it is, for strict loading to refuse."""
    if name in names:
        return names[name]
    module, dot, what = name.rpartition(".")
    return names[module] + dot + what if module in names else name


def renamed(names: Mapping[str, str]) -> Step:
    """The step that renames every tensor by the table."""
    return lambda stream: ((rename(name, names), tensor) for name, tensor in stream)


def without_prefix(prefix: str) -> Step:
    """The step that takes `prefix` off the names that have it."""
    return lambda stream: ((name.removeprefix(prefix), tensor) for name, tensor in stream)


def only_prefix(prefix: str) -> Step:
    """The step that leaves out the tensors whose names do not begin with `prefix`."""
    return lambda stream: (pair for pair in stream if pair[0].startswith(prefix))


def without(names: Iterable[str]) -> Step:
    """The step that leaves out the tensors named: those in a file that are not weights."""
    left_out = frozenset(names)
    return lambda stream: (pair for pair in stream if pair[0] not in left_out)


def _in_blocks(ours: str, theirs: str, inside: Names, num_layers: int) -> Names:
    rows: Names = {}
    for i in range(num_layers):
        rows |= _within(ours.format(i), theirs.format(i), inside)
    return rows


def _within(ours: str, theirs: str, inside: Names) -> Names:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in inside.items()}
