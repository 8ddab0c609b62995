"""Does a picture show what its prompt asked for, where that can be measured?

    pose         |yaw| under 12°: frontal · 8° to 40°: three-quarter · over 35°: profile;  |roll| over 6°: tilted
    expression   lips 0.05 eye distances apart: surprised · closer: neutral, closed smile
                 smile blendshapes over 0.3: both smiles, and neither neutral nor serious
    framing      height of the face over the picture's: over 0.45 close-up · 0.2 to 0.6 head and shoulders · under 0.35
    skin_tone    typology angle of the cheeks, only in light without colour; bands wide enough for light's own say

Bands overlap on purpose: only a clear miss counts. Age, occupation and camera are for a judge that looks.
"""

from __future__ import annotations

import numpy as np

from flowportrait.portraitgen.look import ATTRIBUTES, CORNERS, Look, attributes

_TONES = {"very light": (35, 90), "light": (15, 65), "tan": (-5, 45), "brown": (-40, 25), "dark": (-90, 0)}
_WHITE = ("soft daylight", "hard sun", "studio")
_APART, _SMILING = 0.05, 0.3
MEASURED = ("pose", "expression", "framing", "skin_tone")


def agreement(look: Look, terms: dict[str, str]) -> dict[str, bool]:
    """Whether each dimension that can be measured is met; nothing without a face."""
    if look.landmarks is None or look.blendshapes is None:
        return {}
    told = dict(zip(ATTRIBUTES, attributes(look.picture, look.landmarks, look.blendshapes).tolist(), strict=True))
    across = look.landmarks[CORNERS[1]] - look.landmarks[CORNERS[0]]
    roll = abs(float(np.degrees(np.arctan2(across[1], np.hypot(across[0], across[2])))))
    share = float(np.ptp(look.landmarks[:, 1])) / look.picture.shape[0]
    yaw, apart, smiling = abs(told["yaw"]), told["opening"] > _APART, told["smile"] > _SMILING
    checks = {
        "pose": {"frontal": yaw < 12, "three-quarter": 8 < yaw < 40, "profile": yaw > 35, "tilted": roll > 6},
        "expression": {
            "neutral": not apart and not smiling, "closed smile": smiling and not apart, "open smile": smiling,
            "surprised": apart, "serious": not smiling,
        },
        "framing": {"close-up": share > 0.45, "head and shoulders": 0.2 < share < 0.6, "half-length": share < 0.35},
    }  # fmt: skip
    found = {name: bool(own[terms[name]]) for name, own in checks.items() if name in terms}
    if terms.get("skin_tone") in _TONES and terms.get("light", "studio") in _WHITE:
        low, high = _TONES[terms["skin_tone"]]
        found["skin_tone"] = bool(low < told["tone"] < high)
    return found
