"""How much memory this process has taken at most."""

from __future__ import annotations

import sys


def peak_mb() -> float:
    """The peak in MB; 0 where the system does not tell, so that a bound on the growth holds."""
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
