"""Tests, in folders named after the packages whose claims they check."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
