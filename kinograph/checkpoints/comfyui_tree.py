"""A ComfyUI `models/` tree, or any folder of single files: every weight file is looked into, and taken if it fits.

    diffusion_models/, unet/     a file for each expert; only its name or metadata say which expert it is
    vae/                         wan_2.1_vae, wan2.2_vae
    text_encoders/, clip/        umt5_xxl, mostly with the tokenizer inside

The folder may be ComfyUI itself, its `models`, or a plain folder with the files in it.
"""
from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from kinograph.checkpoints import wording
from kinograph.checkpoints.recognise import (
    BESIDE_THE_EXPERTS,
    TEXT_ENCODER,
    TRANSFORMER,
    VAE_NAME,
    Contents,
    Files,
    all_models,
    fits,
    recognise,
)
from kinograph.config import MODELS, ModelSpec
from kinograph.errors import CheckpointError, KinographError

TRANSFORMERS, VAES, TEXT_ENCODERS = "diffusion_models", "vae", "text_encoders"
SUBFOLDERS = (TRANSFORMERS, "unet", VAES, TEXT_ENCODERS, "clip")


def subfolders(folder: Path) -> list[Path]:
    """The folders of the tree that may hold parts of a model, none if it is no tree."""
    roots = (folder, folder / "models")
    root = next((root for root in roots if (root / TRANSFORMERS).is_dir() or (root / "unet").is_dir()), None)
    return [] if root is None else [root / sub for sub in SUBFOLDERS if (root / sub).is_dir()]


def guess_model(folder: Path) -> str | None:
    """The one row of the model table that the transformers in the folder fit; None if that is unclear."""
    found = {name for contents in Tree(folder).contents if contents.kind == TRANSFORMER for name in contents.models}
    return found.pop() if len(found) == 1 else None


class Tree:
    """What the folder holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.contents: list[Contents] = []
        self.unreadable: list[str] = []
        for files in _models_in(folder):
            try:
                self.contents.append(recognise(files))
            except KinographError as error:  # a damaged file, or one of another program, concerns nobody unless something lacks
                self.unreadable.append(str(error))

    def files(self, spec: ModelSpec, name: str) -> Files:
        """The files of the model called `name`; CheckpointError unless exactly one file fits."""
        kind = name if name in BESIDE_THE_EXPERTS else TRANSFORMER
        fitting = [contents for contents in self.contents if contents.kind == kind and fits(contents, spec)]
        if kind == TRANSFORMER and len(spec.experts) > 1:
            fitting = _of_expert(fitting, name)
        if len(fitting) == 1:
            return fitting[0].files
        what, flag = wording.kind_of(spec, name), wording.flag_of(spec, name)
        if fitting:
            several = ", ".join(str(contents.files[0].relative_to(self.folder)) for contents in fitting)
            raise CheckpointError(f"{self.folder} has several files for the {what} of {spec.name} ({several}); choose one with {flag}")
        raise CheckpointError(f"{self.folder} has no {what} of {spec.name}; {self._hint(spec, kind)}give its file with {flag}")

    def tokenizer(self, spec: ModelSpec) -> Path | None:
        """The file of the text encoder if it has a tokenizer inside, or a tokenizer beside it."""
        encoders = [contents for contents in self.contents if contents.kind == TEXT_ENCODER and fits(contents, spec) and contents.embedded]
        if encoders:
            return encoders[0].files[0]
        for name in ("tokenizer.json", "spiece.model"):
            for folder in subfolders(self.folder) or [self.folder]:
                if found := sorted(folder.rglob(name)):
                    return found[0].parent
        return None

    def _hint(self, spec: ModelSpec, kind: str) -> str:
        """What is there instead."""
        others = [contents for contents in self.contents if contents.kind == kind]
        if kind == VAE_NAME and others:
            return f"its VAE is the {others[0].version} one, and {wording.vae_rule(spec)}; "
        if kind == TRANSFORMER and any(fits(contents, spec) for contents in others):
            return "files fit, but neither name nor metadata say which expert they are; "
        if models := sorted({name for contents in others for name in contents.models} & set(MODELS)):
            return f"it has that of {' and '.join(models)}; use --task {models[0]}, or "
        return f"of its files, some cannot be used ({self.unreadable[0]}); " if self.unreadable else ""


def _models_in(folder: Path) -> Iterator[Files]:
    for sub in subfolders(folder) or [folder]:
        yield from all_models(sub)


def _of_expert(contents: Collection[Contents], name: str) -> list[Contents]:
    return [candidate for candidate in contents if candidate.expert == name]
