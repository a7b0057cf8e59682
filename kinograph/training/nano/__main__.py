"""`python -m kinograph.training.nano`."""
from __future__ import annotations

from kinograph.training.nano.commands import main

main()
