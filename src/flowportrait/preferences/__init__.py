"""Preference pairs, reward models that are trained on them, and the sources of pairs.

study · build_pairs ─► dataset (``pairs.jsonl``) ─► inspection ─► clips ─┐
corpus ─► corruption ─► synthetic_pairs ─────────────────────────────────┴─► reward_model · vlm_reward · latent_reward
                                                                                           └─► rewards
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
