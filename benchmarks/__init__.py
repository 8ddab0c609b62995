"""Measurements of this package: one runner, ``python -m benchmarks``, and one schema of results, ``record.py``."""
