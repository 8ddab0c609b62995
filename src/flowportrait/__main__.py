"""``python -m flowportrait``: the command line."""

import sys

from flowportrait.cli import main

if __name__ == "__main__":
    sys.exit(main())
