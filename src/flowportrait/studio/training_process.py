"""Entry point of the process of a training run that the studio started.

A run is asked to stop with Ctrl-C (SIGINT). A studio in the background ignores that signal, and its child processes
inherit this, so the signal is enabled here first.
"""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command in ``sys.argv`` and return its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "win32":
        signal.signal(signal.SIGBREAK, signal.default_int_handler)
    from flowportrait.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
