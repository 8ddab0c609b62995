"""How well the reward model tells intact from damaged clips, on speakers and kinds of damage it never saw.

    python benchmarks/reward_model.py CORPUS OUTPUT [ties plain regression]

Trains with ties, plain Bradley–Terry and regression on the split ``reward``, and measures pair accuracy on ``dev`` for
damages it learned from and for those it did not, beside each single scorer; prints the matrix of damage × dimension.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from flowportrait.corpus.motion_set import load_motion
from flowportrait.preference.made_pairs import DIMENSIONS, PairBatch, PairMaker
from flowportrait.preference.motion_damage import LEARNED, UNSEEN
from flowportrait.preference.pair_loss import Objective
from flowportrait.preference.reward_model import RewardModel
from flowportrait.preference.train_reward import Plan, tie_thresholds, train_reward
from flowportrait.reward.liveliness import Expressiveness, RealMotion, Smoothness
from flowportrait.reward.sync import SyncExpert

PAIRS = 840
OBJECTIVES: tuple[Objective, ...] = ("ties", "plain", "regression")


def single_scorers(motion: torch.Tensor, mel: torch.Tensor, real: RealMotion) -> torch.Tensor:
    """Sync expert, expressiveness and smoothness ``[B, 3]``."""
    from flowportrait.reward.batch import RewardBatch

    batch = RewardBatch(motion, mel)
    sync = SyncExpert.load().score(motion, mel)[1]
    return torch.stack([sync, Expressiveness(real)(batch).value, Smoothness(real)(batch).value], -1)


def accuracy(difference: torch.Tensor, batch: PairBatch, threshold: torch.Tensor) -> dict[str, dict[str, float]]:
    """Per dimension: right on decided pairs, and right with ties as a third answer."""
    found = {}
    for column, dimension in enumerate(DIMENSIONS):
        own, truth = difference[:, column], batch.labels[:, column]
        said = torch.where(own.abs() <= threshold[column], 0, own.sign()).long()
        decided = truth != 0
        found[dimension] = {
            "without_ties": float((own[decided].sign() == truth[decided]).float().mean()),
            "with_ties": float((said == truth).float().mean()),
            "pairs": int(decided.sum()),
        }
    return found


def matrix(difference: torch.Tensor, batch: PairBatch) -> dict[str, dict[str, float]]:
    """Damage → dimension → share of pairs in which the intact clip scores higher (½: it does not see the damage)."""
    intact_is_a = (batch.points[:, 0] > batch.points[:, 1]).any(1)
    higher = (difference > 0) == intact_is_a[:, None]
    return {
        kind: {
            dimension: float(higher[torch.tensor([k == kind for k in batch.kinds]), column].float().mean())
            for column, dimension in enumerate(DIMENSIONS)
        }
        for kind in dict.fromkeys(batch.kinds)
    }


def main(corpus: Path, output: Path, objectives: Sequence[Objective]) -> None:
    """Train, measure, print."""
    clips, dev = load_motion(corpus, ("reward",)), load_motion(corpus, ("dev",))
    calibration = PairMaker(clips, LEARNED, 77).draw(PAIRS)
    tests = {
        "learned damages": PairMaker(dev, LEARNED, 1).draw(PAIRS),
        "unseen damages": PairMaker(dev, UNSEEN, 2).draw(PAIRS),
    }
    # Statistics of real windows as long as the pairs: the shipped ones are of longer windows.
    real = RealMotion.measure(torch.tensor(_windows(clips)))

    @torch.no_grad()
    def differences(model: RewardModel | None, batch: PairBatch) -> torch.Tensor:
        if model is None:
            return single_scorers(batch.a, batch.mel, real) - single_scorers(batch.b, batch.mel, real)
        return model(batch.a, batch.mel) - model(batch.b, batch.mel)

    result: dict[str, object] = {}
    models: dict[str, RewardModel | None] = {"single scorers": None}
    for objective in objectives:
        models[objective] = train_reward(Plan(objective=objective), clips)
    for name, model in models.items():
        threshold = tie_thresholds(differences(model, calibration), calibration.labels)
        rows = {}
        for test, batch in tests.items():
            difference = differences(model, batch)
            rows[test] = {"accuracy": accuracy(difference, batch, threshold), "matrix": matrix(difference, batch)}
            print(name, "|", test)
            for dimension, row in rows[test]["accuracy"].items():
                print(
                    f"   {dimension:11} {row['without_ties']:.3f}   with ties {row['with_ties']:.3f}  ({row['pairs']})"
                )
            for kind, row in rows[test]["matrix"].items():
                print(f"   {kind:17} " + "  ".join(f"{value:.2f}" for value in row.values()))
        result[name] = rows
        if model is not None:
            output.mkdir(parents=True, exist_ok=True)
            model.save(output / f"{name}.safetensors")
            (output / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")


def _windows(clips: list) -> list:
    from flowportrait.preference.made_pairs import FRAMES

    return [clip.motion[:FRAMES].tolist() for clip in clips if len(clip.motion) >= FRAMES]


if __name__ == "__main__":
    chosen = [objective for objective in OBJECTIVES if objective in sys.argv[3:]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), chosen or OBJECTIVES)
