"""Preference pairs, reward models that learn from them, and where pairs come from.

study · build_pairs ─► dataset (``pairs.jsonl``) ─► inspection ─► clips ─┐
corpus ─► corruption ─► synthetic_pairs ─────────────────────────────────┴─► reward_model · vlm_reward · latent_reward
                                                                                           └─► as_reward
"""

from flowportrait.preferences.dataset import (
    ASPECTS,
    DIMENSIONS,
    Label,
    PreferenceDataset,
    PreferencePair,
    read_pairs,
    write_pairs,
)

__all__ = ["ASPECTS", "DIMENSIONS", "Label", "PreferenceDataset", "PreferencePair", "read_pairs", "write_pairs"]
