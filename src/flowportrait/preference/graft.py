"""One dimension of a latent reward taken from another: ``LatentReward.copy_dimension`` as a command.

python -m flowportrait.preference.graft INTO FROM DIMENSION OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from flowportrait.preference.latent_reward import LatentReward

if __name__ == "__main__":
    whole, part = (LatentReward.from_pretrained(Path(folder)) for folder in sys.argv[1:3])
    whole.copy_dimension(part, sys.argv[3])
    whole.save_pretrained(Path(sys.argv[4]))
