"""How large models are, from their configs alone: parameters, and roughly the memory of a run. No torch."""
from __future__ import annotations

from math import prod

from kinograph.config import DiTConfig, ModelSpec, S2VConfig, TextConfig

GIB = 2**30
RESERVE = 2 * GIB  # the VAE, the CUDA context, and what the allocator cannot use


def dit_parameters(config: DiTConfig) -> int:
    """Numbers in one diffusion transformer."""
    d = config.dim
    patch = prod(config.patch_size)
    attention = 4 * _linear(d, d) + 2 * d  # q, k, v, o and the norms of q and k
    block = 2 * attention + 2 * d + _linear(d, config.ffn_dim) + _linear(config.ffn_dim, d) + 6 * d
    embeddings = (
        _linear(config.in_dim * patch, d)
        + _linear(config.text_dim, d)
        + _linear(d, d)
        + _linear(config.freq_dim, d)
        + _linear(d, d)
        + _linear(d, 6 * d)
    )
    head = _linear(d, config.out_dim * patch) + 2 * d
    extras = s2v_parameters(config) if isinstance(config, S2VConfig) else 0
    return embeddings + config.num_layers * block + head + extras


def s2v_parameters(config: S2VConfig) -> int:
    """Numbers that speech to video adds to the transformer."""
    d, quarter = config.dim, config.dim // 4
    injection = 4 * _linear(d, d) + 2 * d + config.enable_adain * _linear(d, 2 * d)
    local_branch = _linear(3 * config.audio_dim, quarter * config.num_audio_token)
    global_branch = _linear(3 * config.audio_dim, quarter) + _linear(d, d)
    shared = _linear(3 * quarter, d // 2) + _linear(3 * d // 2, d) + d
    audio = config.num_audio_layers + local_branch + config.enable_adain * global_branch + shared
    pose = _linear(config.cond_dim * prod(config.patch_size), d)
    motion = sum(_linear(config.in_dim * volume, d) for volume in (4, 32, 256))
    return len(config.audio_inject_layers) * injection + audio + pose + motion + 3 * d


def text_parameters(config: TextConfig) -> int:
    """Numbers in the text encoder; its linear layers have no bias."""
    attention = 4 * config.dim * config.dim_attn + config.num_buckets * config.num_heads
    block = attention + 3 * config.dim * config.dim_ffn + 2 * config.dim
    return config.vocab_size * config.dim + config.num_layers * block + config.dim


def memory_needed(spec: ModelSpec, *, bytes_per_weight: int, keep_all: bool) -> int:
    """Bytes on the device for the largest default video; an estimate, good to a quarter or so.

    Without `keep_all` each model is released after its stage, and the largest one counts.
    """
    transformer = dit_parameters(spec.dit) * bytes_per_weight
    text_encoder = text_parameters(spec.text) * bytes_per_weight
    work = _activations(spec, bytes_per_weight)
    if keep_all:
        return transformer * len(spec.experts) + text_encoder + work + RESERVE
    return max(transformer + work, text_encoder) + RESERVE


def _activations(spec: ModelSpec, bytes_per_number: int) -> int:
    """Of one block: the float32 residual stream and its norm, then the wider of q, k, v, out and the hidden layer twice."""
    width, height = max(spec.sizes, key=prod)
    tokens = spec.dit.num_tokens(spec.vae.latent_size(num_frames=spec.num_frames, height=height, width=width))
    return tokens * (2 * 4 * spec.dit.dim + bytes_per_number * max(4 * spec.dit.dim, 2 * spec.dit.ffn_dim))


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def in_billions(parameters: int) -> str:
    """`14.3 B`, `12.9 M`."""
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
