"""Average the weights of several checkpoints into one ("model soup").

    θ = Σ_i w_i θ_i,   Σ w = 1                    python -m tools.average_checkpoints RUN RUN … --output CHECKPOINT

Rewards that conflict (lips that fit, lips that do not tremble) need not be balanced in one run: linear interpolation
between fine-tuned weights of the same start mixes what each run learned and averages out noise (rewarded soups,
2306.04488).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

import torch

from flowportrait.config import override
from flowportrait.errors import BadInput
from flowportrait.models.arflow import ARFlow, load_generator


@torch.no_grad()
def soup(models: Sequence[ARFlow], shares: Sequence[float] | None = None) -> ARFlow:
    """Return the weighted mean of generators of one configuration, by default with equal weights.

    Raises:
        BadInput: if there is none, if they differ in more than their weights, or if the shares do not fit.
    """
    if not models or any(model.config != models[0].config for model in models):
        raise BadInput("A soup needs checkpoints of one and the same configuration: take runs from the same start.")
    shares = shares or [1 / len(models)] * len(models)
    if len(shares) != len(models) or abs(sum(shares) - 1) > 1e-6:
        raise BadInput(f"The shares {shares} do not fit {len(models)} checkpoints: give one for each, adding to 1.")
    mixed = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    for name, value in mixed.state_dict().items():
        if value.is_floating_point():
            value.copy_(sum(share * state[name] for share, state in zip(shares, states, strict=True)))
    return mixed


def main() -> None:
    """Average checkpoints from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="names, or folders of runs or checkpoints")
    parser.add_argument("--shares", type=float, nargs="+", help="weight of each checkpoint (default: equal)")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", dest="changes",
                        help="sampling settings of the result: keys of config.json")  # fmt: skip
    options = parser.parse_args()
    mixed = soup([load_generator(name) for name in options.checkpoints], options.shares)
    mixed.config = override(mixed.config, options.changes)
    mixed.save_pretrained(options.output)


if __name__ == "__main__":
    main()
