"""The program that makes the nano models, `python -m kinograph.training.nano`: one module for each kind of member."""
from __future__ import annotations

from kinograph.training.nano.commands import main
from kinograph.training.nano.members import MEMBERS, TOKENIZER, Member

__all__ = ["MEMBERS", "TOKENIZER", "Member", "main"]
