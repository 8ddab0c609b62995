"""One file per command. Each has ``register(commands)``, which adds its options, and ``run(options)``, which does
the work and returns what is printed. Torch and the rest are imported inside ``run``, so that ``--help`` answers
at once.
"""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a command adds its parser."""
