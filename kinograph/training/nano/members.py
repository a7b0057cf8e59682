"""The members that learn drawn shapes, and where members have their tokenizer."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kinograph.config import MODELS, ModelSpec

TOKENIZER = "tokenizer"  # folder inside --out


@dataclass(frozen=True)
class Member:
    """A nano model and the mode it trains in (`train_dit.MODES`)."""

    spec: ModelSpec
    mode: str


MEMBERS: Mapping[str, Member] = {
    name: Member(MODELS[name], mode) for name, mode in (("ti2v-nano", "pinned"), ("i2v-nano", "channels"), ("t2v-nano", "text"))
}
