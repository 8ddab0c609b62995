"""Groups of tests that must not be skipped where ``FLOWPORTRAIT_CI`` is set: there a skip is a failure.

A test belongs to a group by its marker or by the name of its file.
"""

from __future__ import annotations

import os
from fnmatch import fnmatch

GROUPS = {
    "browser": ("test_*_browser.py", "test_browser_*.py"),
    "distributed": ("test_scale.py", "test_policies_sharded.py"),
    "golden": ("test_golden*.py",),
    "guide": ("test_docs_run.py",),
    "ray": ("test_ray.py",),
    "wheel": ("test_package.py",),
}
"""Marker → file names whose tests get it."""


def groups(file: str) -> list[str]:
    """Groups of all tests in a file of this name."""
    return [group for group, patterns in GROUPS.items() if any(fnmatch(file, pattern) for pattern in patterns)]


def skips_fail() -> bool:
    """Whether this run must not skip tests of these groups."""
    return os.environ.get("FLOWPORTRAIT_CI", "") not in ("", "0")
