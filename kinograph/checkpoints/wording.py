"""Words for the models of a spec in messages, the same wherever weights are looked for."""
from __future__ import annotations

from kinograph.checkpoints.recognise import IMAGE_ENCODER, SPEECH_ENCODER, TEXT_ENCODER, VAE_NAME
from kinograph.config import ModelSpec


def kind_of(spec: ModelSpec, name: str) -> str:
    """What the model called `name` is."""
    fixed = {TEXT_ENCODER: "text encoder", VAE_NAME: "VAE", SPEECH_ENCODER: "speech encoder", IMAGE_ENCODER: "image encoder"}
    return fixed.get(name, "transformer" if len(spec.experts) == 1 else f"{name} expert")


def flag_of(spec: ModelSpec, name: str) -> str:
    """The flag that gives the file of the model called `name`."""
    is_only_expert = len(spec.experts) == 1 and name == spec.experts[0].name
    return "--transformer" if is_only_expert else f"--{name}"


def use_task(guess: str) -> str:
    return f"this looks like {guess}; use --task {guess}"


def origin(spec: ModelSpec) -> str:
    return f" from {spec.hub}" if spec.hub else ""


def vae_rule(spec: ModelSpec) -> str:
    """Which VAE belongs to which models, from the side of `spec`."""
    rule = {
        "2.1": "14B models use Wan2.1_VAE.pth; Wan2.2_VAE.pth belongs to ti2v-5B",
        "2.2": "ti2v models use Wan2.2_VAE.pth; Wan2.1_VAE.pth belongs to the 14B models",
    }
    return rule[spec.vae.version]
