"""Replace one dimension of a latent reward by that of another.

python -m tools.graft_latent_reward INTO FROM DIMENSION OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from flowportrait.preferences.latent_reward import LatentReward

if __name__ == "__main__":
    whole, part = (LatentReward.from_pretrained(Path(folder)) for folder in sys.argv[1:3])
    whole.copy_dimension(part, sys.argv[3])
    whole.save_pretrained(Path(sys.argv[4]))
