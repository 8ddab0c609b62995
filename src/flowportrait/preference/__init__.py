"""Preferences between two clips of the same prompt: what they look like, where they come from, what is wrong with them.

pairs.jsonl   one pair a line: prompt, a, b, per aspect A | B | tie, points 1–5, source, annotator, speaker, …
"""

from flowportrait.preference.pairs import ASPECTS, Label, Pair, read_pairs, write_pairs

__all__ = ["ASPECTS", "Label", "Pair", "read_pairs", "write_pairs"]
