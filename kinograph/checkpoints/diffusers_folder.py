"""The layout of diffusers: model_index.json, and a folder with config.json and weights for each model.

    transformer/     the only expert, or the high-noise one        vae/            AutoencoderKLWan
    transformer_2/   the low-noise expert                          text_encoder/   UMT5EncoderModel
    scheduler/       its shift is not the published one: unused    tokenizer/

`boundary_ratio` in model_index.json is where the low-noise expert takes over; `expand_timesteps` says that the model
takes a timestep for each token, which ti2v models do. The configs are checked against the model table, not a second
source of settings: the functions below say what belongs in each.
"""
from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kinograph.checkpoints import wording
from kinograph.checkpoints.recognise import BESIDE_THE_EXPERTS, VAE_NAME, Files, model_files, read_settings
from kinograph.config import MODELS, Expert, ModelSpec
from kinograph.errors import CheckpointError

INDEX = "model_index.json"
CONFIG = "config.json"
TRANSFORMERS = ("transformer", "transformer_2")  # by falling noise
TOKENIZER, SCHEDULER = "tokenizer", "scheduler"
PIPELINES = {"t2v": "WanPipeline", "i2v": "WanImageToVideoPipeline", "ti2v": "WanPipeline"}
TRANSFORMER_KEYS = ("attention_head_dim", "num_attention_heads", "num_layers", "ffn_dim", "freq_dim", "in_channels",
                    "out_channels", "text_dim", "patch_size")  # fmt: skip
VAE_KEYS = ("z_dim", "base_dim", "latents_mean", "latents_std", "is_residual")


def is_diffusers(folder: Path) -> bool:
    return (folder / INDEX).exists()


def model_folder(spec: ModelSpec, name: str) -> str:
    """Where the model called `name` lies inside the folder."""
    if name in BESIDE_THE_EXPERTS:
        return name
    return TRANSFORMERS[[expert.name for expert in spec.experts].index(name)]


def files(spec: ModelSpec, folder: Path, name: str) -> Files:
    """The weight files of the model called `name`; CheckpointError where there are none or shards are missing."""
    return model_files(folder / model_folder(spec, name))


def check(spec: ModelSpec, folder: Path, needed: Collection[str]) -> tuple[str, ...]:
    """Notes on what the folder says otherwise than the model table.

    CheckpointError where it is of another model or lacks one of the models `needed`.
    """
    if spec.task not in PIPELINES:
        raise CheckpointError(f"{folder} is a diffusers folder, and {spec.name} is read in its published layout; give that folder")
    index = read_settings(folder / INDEX)
    if index.get("_class_name") not in PIPELINES.values():
        readable = " and ".join(sorted(set(PIPELINES.values())))
        raise CheckpointError(f"{folder} is a {index.get('_class_name')}; this version reads the folders of {readable}")
    missing = [sub for name in needed if not (folder / (sub := model_folder(spec, name))).is_dir()]
    if missing:
        raise CheckpointError(f"{folder} lacks {' and '.join(missing)}, which {spec.name} needs; {_remedy(spec, folder)}")
    for expert in spec.experts:
        if expert.name in needed:
            _check_transformer(spec, folder, expert)
    if VAE_NAME in needed:
        _check_vae(spec, folder)
    expand = bool(index.get("expand_timesteps"))
    if expand != (spec.task == "ti2v"):
        raise CheckpointError(
            f"{folder / INDEX} has expand_timesteps {str(expand).lower()}, which is not a {spec.task} model; {_remedy(spec, folder)}"
        )
    found, ours = index.get("boundary_ratio"), boundary_ratio(spec)
    if found is not None and ours is not None and found != ours:
        return (f"{folder / INDEX} has boundary_ratio {found}; the experts change at {ours}, as published for {spec.name}",)
    return ()


def guess_model(folder: Path) -> str | None:
    """The row of the model table whose sizes the folder has; None if that is unclear."""
    try:
        index, config = read_settings(folder / INDEX), read_settings(folder / TRANSFORMERS[0] / CONFIG)
    except (CheckpointError, OSError):
        return None
    rows = (row for row in MODELS.values() if row.task in PIPELINES and not _difference(transformer_config(row), config, TRANSFORMER_KEYS))
    expand = bool(index.get("expand_timesteps"))
    return next((row.name for row in rows if expand == (row.task == "ti2v")), None)


def _check_transformer(spec: ModelSpec, folder: Path, expert: Expert) -> None:
    path = folder / model_folder(spec, expert.name) / CONFIG
    if path.exists() and (difference := _difference(transformer_config(spec), read_settings(path), TRANSFORMER_KEYS)):
        key, found, ours = difference
        raise CheckpointError(f"{path} has {key} {found}, but {spec.name} has {key} {ours}; {_remedy(spec, folder)}")


def _check_vae(spec: ModelSpec, folder: Path) -> None:
    path = folder / VAE_NAME / CONFIG
    if path.exists() and (difference := _difference(vae_config(spec), read_settings(path), VAE_KEYS)):
        key, found, ours = difference
        raise CheckpointError(
            f"{path} has {key} {_short(found)}, but the VAE of {spec.name} has {key} {_short(ours)}; {_remedy(spec, folder)}"
        )


def _difference(ours: Mapping[str, Any], config: Mapping[str, Any], keys: Collection[str]) -> tuple[str, Any, Any] | None:
    """The first of `keys` that both have with different values: (key, in the file, ours)."""
    return next(((key, config[key], ours[key]) for key in keys if key in config and key in ours and config[key] != ours[key]), None)


def _remedy(spec: ModelSpec, folder: Path) -> str:
    guess = guess_model(folder)
    return wording.use_task(guess) if guess and guess != spec.name else f"give the diffusers folder of {spec.name}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


# ----------------------------------------------------------------------------------- what belongs in each JSON file


def boundary_ratio(spec: ModelSpec) -> float | None:
    return spec.experts[0].t_min if len(spec.experts) > 1 else None


def index_json(spec: ModelSpec, *, tokenizer_class: str) -> dict[str, Any]:
    """model_index.json."""
    transformer = ["diffusers", "WanTransformer3DModel"]
    no_encoder = {"image_encoder": [None, None], "image_processor": [None, None]} if spec.task == "i2v" else {}
    return {
        "_class_name": PIPELINES[spec.task],
        "boundary_ratio": boundary_ratio(spec),
        "expand_timesteps": spec.task == "ti2v",
        **no_encoder,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", tokenizer_class],
        "transformer": transformer,
        "transformer_2": transformer if len(spec.experts) > 1 else [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def transformer_config(spec: ModelSpec) -> dict[str, Any]:
    dit = spec.dit
    return {
        "_class_name": "WanTransformer3DModel",
        "added_kv_proj_dim": None,
        "attention_head_dim": dit.head_dim,
        "cross_attn_norm": True,
        "eps": dit.eps,
        "ffn_dim": dit.ffn_dim,
        "freq_dim": dit.freq_dim,
        "image_dim": None,
        "in_channels": dit.in_dim,
        "num_attention_heads": dit.num_heads,
        "num_layers": dit.num_layers,
        "out_channels": dit.out_dim,
        "patch_size": list(dit.patch_size),
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": dit.text_dim,
    }


def vae_config(spec: ModelSpec) -> dict[str, Any]:
    vae = spec.vae
    channels = 3 * vae.patch_size**2
    stride_t, stride, _ = vae.stride
    return {
        "_class_name": "AutoencoderKLWan",
        "attn_scales": [],
        "base_dim": vae.base_dim,
        "decoder_base_dim": vae.decoder_dim,
        "dim_mult": list(vae.dim_mult),
        "dropout": 0.0,
        "in_channels": channels,
        "is_residual": vae.version == "2.2",
        "latents_mean": list(vae.latent_mean),
        "latents_std": list(vae.latent_std),
        "num_res_blocks": vae.num_res_blocks,
        "out_channels": channels,
        "patch_size": vae.patch_size if vae.patch_size > 1 else None,
        "scale_factor_spatial": stride,
        "scale_factor_temporal": stride_t,
        "temperal_downsample": list(vae.temporal_down),  # the key is misspelt there
        "z_dim": vae.z_dim,
    }


def text_config(spec: ModelSpec) -> dict[str, Any]:
    text = spec.text
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "d_ff": text.dim_ffn,
        "d_kv": text.dim_attn // text.num_heads,
        "d_model": text.dim,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-6,
        "num_decoder_layers": text.num_layers,
        "num_heads": text.num_heads,
        "num_layers": text.num_layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": text.max_distance,
        "relative_attention_num_buckets": text.num_buckets,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": text.vocab_size,
    }


def scheduler_config(spec: ModelSpec) -> dict[str, Any]:
    """The published sampler as diffusers runs it, with the published shift."""
    return {
        "_class_name": "UniPCMultistepScheduler",
        "final_sigmas_type": "zero",
        "flow_shift": spec.shift,
        "lower_order_final": True,
        "num_train_timesteps": 1000,
        "predict_x0": True,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "bh2",
        "use_flow_sigmas": True,
    }


def tokenizer_config(spec: ModelSpec, tokenizer: Path) -> dict[str, Any]:
    """tokenizer_config.json, for folders that have none; `tokenizer` is the tokenizer.json in it."""
    # transformers builds a T5 tokenizer anew from the vocabulary, so any other kind of model must not be called one.
    is_t5 = read_settings(tokenizer).get("model", {}).get("type") == "Unigram"
    return {
        "tokenizer_class": "T5TokenizerFast" if is_t5 else "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": spec.text.text_len,
        **({"extra_ids": 0} if is_t5 else {}),
    }
