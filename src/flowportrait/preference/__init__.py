"""Preferences between two clips of the same prompt: where they come from, what is wrong with them, what they teach.

study · build_pairs ─► dataset (``pairs.jsonl``) ─► inspection ─► clips ─┐
corpus ─► corruption ─► synthetic_pairs ─────────────────────────────────┴─► reward_model · vlm_reward · latent_reward
                                                                                           └─► as_reward
"""

from flowportrait.preference.dataset import (
    ASPECTS,
    DIMENSIONS,
    Label,
    PreferenceDataset,
    PreferencePair,
    read_pairs,
    write_pairs,
)

__all__ = ["ASPECTS", "DIMENSIONS", "Label", "PreferenceDataset", "PreferencePair", "read_pairs", "write_pairs"]
