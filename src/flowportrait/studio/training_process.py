"""The process of a run that the studio started.

A studio in the background ignores Ctrl-C, and what it starts inherits that; it is how a run is asked to stop.
"""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command of ``sys.argv``; returns its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "win32":
        signal.signal(signal.SIGBREAK, signal.default_int_handler)
    from flowportrait.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
