"""Preferences between two clips of the same prompt: where they come from, what is wrong with them, what they teach.

pairs.jsonl    one pair a line: prompt, a, b, per aspect A | B | tie, points 1–5, source, annotator, speaker, …

study · judged · made_videos ─► pairs ─► inspection ─► stated_pairs ─┐
corpus ─► corruption    ─► made_pairs · latent_pairs ────────────────┴─► reward_model · vlm_reward · latent_reward
                                                                                       └─► as_reward
"""

from flowportrait.preference.pairs import ASPECTS, Label, Pair, read_pairs, write_pairs

__all__ = ["ASPECTS", "Label", "Pair", "read_pairs", "write_pairs"]
