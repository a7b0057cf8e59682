"""`python -m kinograph`: the same as the command `kinograph`."""
from __future__ import annotations

import sys

from kinograph.cli.main import main

sys.exit(main())
