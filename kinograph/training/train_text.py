"""Trains the nano text encoder on captions alone, before a transformer sees it.

Objects and backgrounds share their colour words, so an encoder must bind each word to its role. Trained from nothing
together with the transformer it stays close to a bag of words, and colours change places in the videos. Here linear heads
read every attribute from the encoder's output: of each token, and of the mean over the tokens. What a linear layer can
read from any token, cross-attention can. The heads are thrown away; the encoder then stays as it is, like the published
one, so that nothing learned later undoes the binding.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinograph.models.t5 import TextEncoder
from kinograph.models.tokenizer import Tokenizer
from kinograph.training.captions import labelled_caption
from kinograph.training.optim import FlatParameters, Optimizer, OptimizerConfig, hidden_matrix
from kinograph.training.parts import load_parts, save_parts
from kinograph.training.toybox import (
    BACKGROUNDS,
    COLORS,
    CORNERS,
    MOTIONS,
    PATTERNS,
    SHAPES,
    SIZES,
    SPEEDS,
    Description,
    descriptions,
    sample_scenes,
)
from kinograph.training.trainer import Phase, TrainConfig, Trainer

STEM = "text"
NONE = "none"
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "color": COLORS,
    "shape": SHAPES,
    "motion": MOTIONS,
    "background": BACKGROUNDS,
    "pattern": PATTERNS,
    "size": SIZES,
    "speed": SPEEDS,
    "second color": (*COLORS, NONE),
    "second shape": (*SHAPES, NONE),
    "second corner": (*CORNERS, NONE),
}
ALIGNED = 8  # tokens: attention kernels want rows of the position bias to begin at whole multiples
UNKNOWN = -100  # the label of what a caption leaves open; `cross_entropy` skips it
TEXT, HEADS = "text_encoder", "heads"


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """How to train the encoder."""

    num_captions: int = 65_536
    complete_share: float = 0.5  # of captions that name colour, shape, motion and background without fail
    batch: int = 256
    token_weight: float = 0.5  # of what each token tells alone, beside 1 for the mean over tokens
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(kind="muon", lr=3e-3, muon_lr=0.02, ema_decay=0.99))
    num_eval: int = 4096
    seed: int = 3


# ---------------------------------------------------------------------------------------------------------- captions


@dataclass(frozen=True)
class CaptionSet:
    """Captions as token ids, and what each says."""

    ids: Tensor  # [n, L] int64, L enough for the longest of them
    real: Tensor  # [n, L] bool: no padding
    labels: Tensor  # [n, attributes] int64: indices into the values of `ATTRIBUTES`, or UNKNOWN

    def __len__(self) -> int:
        return len(self.ids)


def labels_of(scene: Description, known: frozenset[str]) -> list[int]:
    """The label of each attribute of `scene`, UNKNOWN where it is not in `known`."""
    second = scene.second or (NONE, NONE, NONE)
    values = {
        **{name: getattr(scene, name) for name in ("color", "shape", "motion", "background", "pattern", "size", "speed")},
        **dict(zip(("second color", "second shape", "second corner"), second)),
    }
    return [words.index(values[name]) if name.split()[0] in known else UNKNOWN for name, words in ATTRIBUTES.items()]


def caption_set(
    n: int, tokenizer: Tokenizer, *, seed: int, split: str = "train", complete_share: float = 1.0, device: torch.device | str = "cpu"
) -> CaptionSet:
    """`n` captions of as many scenes of `split`."""
    scenes = descriptions(sample_scenes(n, seed, split=split))
    return captions_of(scenes, tokenizer, random.Random(seed), complete_share=complete_share, device=device)


def captions_of(
    scenes: Sequence[Description],
    tokenizer: Tokenizer,
    rng: random.Random,
    *,
    complete_share: float = 1.0,
    device: torch.device | str = "cpu",
) -> CaptionSet:
    """One caption of each scene, naming all that matters in a `complete_share` of them."""
    texts, labels = [], []
    for scene in scenes:
        text, known = labelled_caption(scene, rng, complete=rng.random() < complete_share)
        texts.append(text)
        labels.append(labels_of(scene, known))
    ids, real = tokenizer(texts)
    longest = min(ids.shape[1], -(-int(real.sum(1).max()) // ALIGNED) * ALIGNED)
    return CaptionSet(ids[:, :longest].to(device), real[:, :longest].to(device), torch.tensor(labels, device=device))


# ---------------------------------------------------------------------------------------------------------- training


class Heads(nn.Module):
    """Linear readings of every attribute: [..., dim] to one tensor of logits [..., classes] for each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.sizes = [len(words) for words in ATTRIBUTES.values()]
        self.linear = nn.Linear(dim, sum(self.sizes))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.linear(x).split(self.sizes, dim=-1)


def mean_over_tokens(embeddings: Tensor, real: Tensor) -> Tensor:
    """[B, L, dim], zero at padding, to [B, dim]."""
    return embeddings.sum(1) / real.sum(1, keepdim=True)


@dataclass
class TextTraining:
    """An encoder and its heads in training."""

    recipe: TextRecipe
    encoder: TextEncoder
    heads: Heads
    captions: CaptionSet
    held_out: CaptionSet
    weights: FlatParameters
    optimizer: Optimizer

    def loss(self) -> Mapping[str, Tensor]:
        rows = torch.randint(len(self.captions), (self.recipe.batch,), device=self.captions.ids.device)
        real, labels = self.captions.real[rows], self.captions.labels[rows]
        embeddings = self.encoder(self.captions.ids[rows], real)
        pooled = cross_entropies(self.heads(mean_over_tokens(embeddings, real)), labels)
        of_tokens = labels[:, None].expand(-1, real.shape[1], -1).masked_fill(~real[..., None], UNKNOWN)
        alone = cross_entropies(self.heads(embeddings), of_tokens)
        return {"loss": pooled + self.recipe.token_weight * alone, "pooled": pooled.detach(), "tokens": alone.detach()}

    @torch.no_grad()
    def accuracy(self) -> dict[str, float]:
        """Share of held-out captions whose attribute is read rightly from the mean over tokens, by attribute.

        Of the weights in the modules: the averaged ones after `finish`.
        """
        return self._accuracy(mean_over_tokens)

    @torch.no_grad()
    def token_accuracy(self) -> dict[str, float]:
        """The same, read from the first token alone."""
        return self._accuracy(lambda embeddings, real: embeddings[:, 0])

    def _accuracy(self, pooled: Callable[[Tensor, Tensor], Tensor]) -> dict[str, float]:
        right, count = torch.zeros(len(ATTRIBUTES)), torch.zeros(len(ATTRIBUTES))
        for start in range(0, len(self.held_out), 1024):
            rows = slice(start, start + 1024)
            real, labels = self.held_out.real[rows], self.held_out.labels[rows]
            logits = self.heads(pooled(self.encoder(self.held_out.ids[rows], real), real))
            seen = torch.stack([part.argmax(-1) for part in logits], dim=1)
            right += ((seen == labels) & (labels != UNKNOWN)).sum(0).cpu()
            count += (labels != UNKNOWN).sum(0).cpu()
        return dict(zip(ATTRIBUTES, (right / count.clamp(min=1)).tolist()))

    def finish(self) -> None:
        """Puts the moving average of the weights into the modules."""
        self.weights.master.copy_(self.optimizer.state.ema)
        self.weights.refresh()


def cross_entropies(logits: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Mean over attributes of the cross-entropy over what is known; `labels` [..., attributes] beside logits [..., classes]."""
    losses = []
    for part, wanted in zip(logits, labels.unbind(-1)):
        total = F.cross_entropy(part.flatten(0, -2), wanted.flatten(), ignore_index=UNKNOWN, reduction="sum")
        losses.append(total / (wanted != UNKNOWN).sum().clamp(min=1))
    return torch.stack(losses).mean()


def prepare(recipe: TextRecipe, encoder: TextEncoder, tokenizer: Tokenizer) -> TextTraining:
    """The training of `encoder`, whose weights are fresh, on its device."""
    device = encoder.token_embedding.weight.device
    heads = Heads(encoder.config.dim).to(device)
    weights = FlatParameters({TEXT: encoder, HEADS: heads}, matrix=hidden_matrix)
    return TextTraining(
        recipe=recipe,
        encoder=encoder,
        heads=heads,
        captions=caption_set(
            recipe.num_captions, tokenizer, seed=recipe.seed, complete_share=recipe.complete_share, device=device
        ),
        held_out=caption_set(recipe.num_eval, tokenizer, seed=recipe.seed + 1, split="held_out", device=device),
        weights=weights,
        optimizer=Optimizer(weights, recipe.optimizer),
    )


def train(training: TextTraining, config: TrainConfig) -> None:
    """Trains until the budget of `config` is spent and leaves the averaged weights in the encoder."""
    Trainer(training.weights, training.optimizer, [Phase("text encoder", training.loss)], config).run()
    training.finish()


def summary(accuracy: Mapping[str, float]) -> str:
    return " ".join(f"{name} {100 * share:.1f}" for name, share in accuracy.items())


def save(encoder: TextEncoder, folder: str | Path) -> None:
    """The encoder in float32, as `text.part*`."""
    save_parts(encoder.state_dict(), folder, STEM, dtype=torch.float32)


def load(folder: str | Path) -> dict[str, Tensor]:
    """The state dict that `save` left in `folder`."""
    return load_parts(folder, STEM)[0]
