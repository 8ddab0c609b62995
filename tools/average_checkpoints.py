"""One checkpoint with the mean of several checkpoints' weights.

    θ = Σ_i w_i θ_i,   Σ w = 1                    python -m tools.average_checkpoints RUN RUN … --output CHECKPOINT

Rewards that pull against each other (lips that fit, lips that do not tremble) need not be settled in one run: between
fine-tuned weights of one start the straight line mixes what each learned, and averages out what was noise (rewarded
soups, 2306.04488).
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
    """The weighted mean (by default alike) of generators of one configuration.

    Raises:
        BadInput: none, generators that differ in more than their weights, or shares that do not fit.
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="names, or folders of runs or checkpoints")
    parser.add_argument("--shares", type=float, nargs="+", help="of each (default alike)")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", dest="changes",
                        help="how to draw from the mean: keys of config.json")  # fmt: skip
    given = parser.parse_args()
    mixed = soup([load_generator(name) for name in given.checkpoints], given.shares)
    mixed.config = override(mixed.config, given.changes)
    mixed.save_pretrained(given.output)


if __name__ == "__main__":
    main()
