"""Writes random weights of a model's full size in the published layout, to measure loading and running without a download.

    python benchmarks/write_random_checkpoint.py ti2v-5B /data/random-5B
    python benchmarks/write_random_checkpoint.py t2v-A14B /data/random-A14B --same-experts --device cuda

Weights have the scales of a fresh initialisation, so that activations stay finite; the videos are noise. Tensors are
drawn and written one at a time. Disk in bfloat16: 24 GB for ti2v-5B,
69 GB for an A14B model, 41 GB with --same-experts.
"""
from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers
import torch

from kinograph.checkpoints.layout import SPEECH_FILE, expected_tensors, model_factory, tokenizer_folder
from kinograph.checkpoints.recognise import IMAGE_ENCODER, SPEECH_ENCODER, TEXT_ENCODER, VAE_NAME
from kinograph.checkpoints.save import SHARD_BYTES, replaced_folder, write_dit, write_pth, write_safetensors
from kinograph.config import MODELS, Expert, ModelSpec
from kinograph.runtime.device import DTYPES, resolve_device

State = dict[str, torch.Tensor]


def write_random_checkpoint(
    spec: ModelSpec,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    tokenizer: str | Path | None = None,
    same_experts: bool = False,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """`folder` with random weights for every model of `spec`: transformers in `dtype`, text encoder bfloat16, VAE float32.

    `tokenizer`: a folder to copy; None generates a byte tokenizer. `same_experts` draws one expert and links the others
    to its files.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def announced(name: str, dtype: torch.dtype) -> State:
        return {key: tensor.to(dtype) for key, tensor in expected_tensors(model_factory(spec, name)).items()}

    def drawn(name: str, dtype: torch.dtype) -> State:
        return {key: draw(key, tensor, generator).cpu() for key, tensor in announced(name, dtype).items()}

    with replaced_folder(Path(folder), overwrite=overwrite) as work:
        for i, expert in enumerate(spec.experts):
            if same_experts and i > 0:
                link_files(work, spec.experts[0], expert)
                continue
            state = announced(expert.name, dtype)
            write_dit(
                work / expert.folder, state, spec=spec, shard_bytes=shard_bytes, value=lambda key, s=state: draw(key, s[key], generator)
            )
            report(f"{expert.name} written")
        write_pth(work / spec.files.vae, drawn(VAE_NAME, torch.float32))
        write_pth(work / spec.files.text_encoder, drawn(TEXT_ENCODER, torch.bfloat16))
        if spec.image_encoder is not None:
            write_pth(work / spec.files.image_encoder, drawn(IMAGE_ENCODER, torch.float32))
        if spec.speech_encoder is not None:
            folder_of_speech = work / spec.files.speech_encoder
            folder_of_speech.mkdir(parents=True)
            write_safetensors(folder_of_speech / SPEECH_FILE, drawn(SPEECH_ENCODER, torch.float32))
        report("VAE and encoders written")
        if tokenizer is None:
            write_byte_tokenizer(tokenizer_folder(spec, work))
        else:
            shutil.copytree(tokenizer, tokenizer_folder(spec, work))


def draw(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A tensor with the shape and dtype of `like`, on the device of `generator`, at the scale that its name calls for.

    norms 1, biases 0, modulation deviation 1/sqrt(dim), all else 1/sqrt(fan-in).
    """
    shape, dtype, device = like.shape, like.dtype, generator.device
    if name.endswith(".bias"):
        return torch.zeros(shape, dtype=dtype, device=device)
    if sum(size > 1 for size in shape) <= 1:
        return torch.ones(shape, dtype=dtype, device=device)
    fan_in = shape[-1] if name.endswith("modulation") else math.prod(shape[1:])
    # In float32 and then rounded: normal numbers are not drawn faster in half precision, nor on every device.
    return torch.randn(shape, generator=generator, device=device).mul_(fan_in**-0.5).to(dtype)


def link_files(folder: Path, source: Expert, target: Expert) -> None:
    """The files of expert `target` as hard links to those of `source`."""
    (folder / target.folder).mkdir(parents=True)
    for path in (folder / source.folder).iterdir():
        os.link(path, folder / target.folder / path.name)


def write_byte_tokenizer(folder: str | Path) -> None:
    """A tokenizer with one token per byte: ids 0 to 258, so that it fits any vocabulary."""
    specials = ["<pad>", "</s>", "<unk>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    Path(folder).mkdir(parents=True)
    tokenizer.save(str(Path(folder) / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[name for name, spec in MODELS.items() if spec.available])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the transformers; the published ones are float32")
    parser.add_argument("--device", default="auto", help="where weights are drawn")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder to copy; default: a generated byte tokenizer")
    parser.add_argument("--same-experts", action="store_true", help="write one expert and link the other to it")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    options = parser.parse_args()
    began = time.perf_counter()
    write_random_checkpoint(
        MODELS[options.model],
        options.folder,
        dtype=DTYPES[options.dtype],
        device=resolve_device(options.device),
        tokenizer=options.tokenizer,
        same_experts=options.same_experts,
        overwrite=options.overwrite,
        report=lambda line: print(f"{time.perf_counter() - began:6.1f} s  {line}", flush=True),
    )
    size = sum({path.stat().st_ino: path.stat().st_size for path in options.folder.rglob("*") if path.is_file()}.values())
    seconds = time.perf_counter() - began
    print(f"{size / 1e9:.1f} GB in {seconds:.1f} s ({size / 1e9 / seconds:.2f} GB/s)")


if __name__ == "__main__":
    main()
