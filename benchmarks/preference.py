"""How well what was learned from pairs tells intact from damaged clips, on speakers and kinds of damage it never saw.

    python benchmarks/preference.py CORPUS OUTPUT [--figure docs/preferences.png]

The shipped reward model (Bradley–Terry with ties) beside every single scorer, beside the same network trained by plain
Bradley–Terry and by regression, with and without ties; the matrix of damage × dimension; real clips against the
generator's; the shipped latent reward as σ grows, with what it says of its own certainty. Speakers of ``dev`` alone;
thresholds for ties come from training speakers. About five minutes of one core; OUTPUT keeps what takes long.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from flowportrait.corruption import HELD_OUT_MOTION_CORRUPTIONS, MOTION_CORRUPTIONS
from flowportrait.data.motion_dataset import MotionClip, load_motion_clips
from flowportrait.flow.schedules import interpolate
from flowportrait.models.arflow import load_generator
from flowportrait.preferences.clips import PairObjective, PreferenceBatch
from flowportrait.preferences.dataset import DIMENSIONS
from flowportrait.preferences.latent_reward import LatentReward
from flowportrait.preferences.reward_model import MotionReward, MotionRewardTrainingConfig, train_motion_reward
from flowportrait.preferences.synthetic_pairs import (
    WINDOW_FRAMES,
    DamagedPairSampler,
    LatentPairBatch,
    LatentPairSampler,
    add_audio_conditions,
    generate_clips,
)
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Reward
from flowportrait.rewards.motion import (
    ExpressivenessReward,
    EyesReward,
    HeadReward,
    RealMotionStatistics,
    SmoothnessReward,
)
from flowportrait.rewards.sync import LipSyncReward, MotionSyncExpert

PAIRS, LATENT_PAIRS = 840, 270
PASTS = ("whole clip noisy", "past clean")
SIGMAS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
DAMAGES = {"learned damage": MOTION_CORRUPTIONS, "unseen damage": HELD_OUT_MOTION_CORRUPTIONS}
SHIPPED = "reward model (shipped)"
BASELINES: tuple[PairObjective, ...] = ("plain", "regression")
Scores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Motion and log-mel to ``[B, 3]``, one column per dimension."""
Rows = dict[str, dict[str, float]]


def everywhere(reward: Reward) -> Scores:
    """One reward as an opinion on all three dimensions."""
    return lambda motion, mel: reward(RewardBatch(motion, mel)).value[:, None].expand(-1, 3)


def single_scorers(clips: list[MotionClip]) -> dict[str, Scores]:
    """Each as an opinion on all three dimensions; statistics of real windows as long as the pairs."""
    real = RealMotionStatistics.measure(
        torch.stack([clip.motion[:WINDOW_FRAMES] for clip in clips if len(clip.motion) >= WINDOW_FRAMES])
    )
    rewards: dict[str, Reward] = {
        "sync": LipSyncReward(MotionSyncExpert.load()), "expressiveness": ExpressivenessReward(real),
        "eyes": EyesReward(real),
        "head": HeadReward(real), "smoothness": SmoothnessReward(real),
    }  # fmt: skip
    found = {f"scorer {name}": everywhere(reward) for name, reward in rewards.items()}
    found["scorer sync, plain cosine"] = lambda motion, mel: (
        MotionSyncExpert.load().score(motion, mel)[1][:, None].expand(-1, 3)
    )
    return found


def signs(labels: torch.Tensor) -> torch.Tensor:
    """Values of ``Label`` as 1 where the first clip is better, −1 where the second is, 0 for a tie."""
    return 2 * labels - 1


def accuracy(difference: torch.Tensor, batch: PreferenceBatch, threshold: torch.Tensor) -> Rows:
    """Per dimension: right on decided pairs (with half the width of its 95 % interval), and right with ties as a third
    answer."""
    found: Rows = {}
    for column, dimension in enumerate(DIMENSIONS):
        own, truth = difference[:, column], signs(batch.labels)[:, column]
        stated = torch.where(own.abs() <= threshold[column], 0, own.sign())
        decided = truth != 0
        # A scorer that sees no difference tosses a coin.
        right = float((0.5 + own[decided].sign() * truth[decided] / 2).mean())
        found[dimension] = {
            "right": right,
            "half_width": 1.96 * (right * (1 - right) / int(decided.sum())) ** 0.5,
            "with_ties": float((stated == truth).float().mean()),
        }
    return found


def tie_thresholds(difference: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Per dimension the score difference ``[D]`` under which to say tie: the most accurate one for ``difference`` and
    ``labels`` ``[N, D]``."""
    found = []
    for column in range(len(DIMENSIONS)):
        own, truth = difference[:, column], signs(labels)[:, column]
        candidates = own.abs().quantile(torch.linspace(0, 1, 101))
        stated = torch.where(own.abs()[None] <= candidates[:, None], 0, own.sign()[None])
        found.append(candidates[(stated == truth).float().mean(1).argmax()])
    return torch.stack(found)


def matrix(difference: torch.Tensor, intact_is_first: torch.Tensor, kinds: tuple[str, ...]) -> Rows:
    """Damage → dimension → share of pairs in which the intact clip scores higher (½: it does not see the damage)."""
    higher = 0.5 + difference.sign() * (2 * intact_is_first[:, None].float() - 1) / 2
    rows = {kind: torch.tensor([own == kind for own in kinds]) for kind in dict.fromkeys(kinds)}
    return {kind: dict(zip(DIMENSIONS, higher[row].mean(0).tolist(), strict=True)) for kind, row in rows.items()}


@torch.no_grad()
def latent_rows(
    model: LatentReward, pairs: LatentPairBatch, pasts: Sequence[str] = PASTS
) -> dict[str, dict[str, Rows]]:
    """Past noisy or clean → σ → dimension → accuracy on decided pairs, and the chance it gave its own verdict there."""
    clean, audio, start = pairs.all_clips()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    found: dict[str, dict[str, Rows]] = {}
    for name in pasts:
        found[name], past = {}, clean if name == PASTS[1] else None
        for sigma in SIGMAS:
            scores = model(interpolate(clean, noise, torch.tensor(sigma)), sigma, audio, start, past)
            first, second = scores.clip().split()
            win, _, loss = model.log_probs(first, second).exp().unbind(-1)
            truth = signs(pairs.labels)
            decided = truth != 0
            right = (first.mean - second.mean).sign() == truth
            sure = torch.maximum(win, loss) / (win + loss)
            found[name][str(sigma)] = {
                dimension: {
                    "right": float(right[:, d][decided[:, d]].float().mean()),
                    "says": float(sure[:, d][decided[:, d]].mean()),
                }
                for d, dimension in enumerate(DIMENSIONS)
            }
    return found


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` returned, this time or an earlier one."""
    if not path.is_file():
        torch.save(make(), path)
    return torch.load(path, weights_only=False)


def show(title: str, rows: dict[str, list[float]], columns: list[str]) -> None:
    """One table on the screen."""
    table = Table("", *columns, title=title, title_justify="left")
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.2f}" for value in values))
    Console(width=150).print(table)


def draw(path: Path, found: dict[str, dict[str, dict[str, Rows]]]) -> None:
    """Accuracy of the latent reward against σ."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for panel, (test, by_past) in zip(panels, found.items(), strict=True):
        for past, line in zip(PASTS, ("-", "--"), strict=True):
            for place, dimension in enumerate(DIMENSIONS):
                values = [by_past[past][str(sigma)][dimension]["right"] for sigma in SIGMAS]
                panel.plot(SIGMAS, values, line, color=f"C{place}", label=f"{dimension}, {past}")
        panel.axhline(0.5, color="grey", lw=0.5)
        panel.set(title=test, xlabel="σ", ylim=(0.4, 1.02))
    panels[0].set_ylabel("pairs told right")
    panels[1].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def measure_scores(clips: list[MotionClip], dev: list[MotionClip], models: dict[str, Scores]) -> dict[str, Any]:
    """Single scorers and models on damage learned from and not."""
    calibration = DamagedPairSampler(clips, MOTION_CORRUPTIONS, 77).draw(PAIRS)
    scorers, result = single_scorers(clips), {}
    for seed, (test, own) in enumerate(DAMAGES.items(), 1):
        batch = DamagedPairSampler(dev, own, seed).draw(PAIRS)
        rows, cells = {}, {}
        for name, scores in {**scorers, **models}.items():
            gaps = [scores(pairs.first, pairs.mel) - scores(pairs.second, pairs.mel) for pairs in (calibration, batch)]
            rows[name] = accuracy(gaps[1], batch, tie_thresholds(gaps[0], calibration.labels))
            if name in models:
                cells[name] = matrix(gaps[1], (batch.points[:, 0] > batch.points[:, 1]).any(1), batch.kinds)
        keys = ("right", "with_ties")
        show(
            f"{test}: right on decided pairs, and with ties",
            {name: [row[d][key] for key in keys for d in DIMENSIONS] for name, row in rows.items()},
            [f"{d}{' +ties' * (key != 'right')}" for key in keys for d in DIMENSIONS],
        )
        show(f"{test} × dimension", {k: list(row.values()) for k, row in cells[SHIPPED].items()}, list(DIMENSIONS))
        result[test] = {"accuracy": rows, "matrix": cells}
    return result


def measure_latent(output: Path, dev: list[MotionClip], models: dict[str, Scores]) -> dict[str, Any]:
    """The latent reward on real and generated clips; what scores say of real against generated."""
    generator, latent = load_generator("sft"), LatentReward.load()
    real = kept(output / "heard.pt", lambda: add_audio_conditions(generator, dev))
    found = {}
    for seed, (test, own) in enumerate(DAMAGES.items(), 3):
        found[test] = latent_rows(
            latent, LatentPairSampler(real, latent.space, own, seed, vary=False).draw(LATENT_PAIRS)
        )
        for past, levels in found[test].items():
            rows = {
                f"σ {sigma}": [row[d][key] for key in ("right", "says") for d in DIMENSIONS]
                for sigma, row in levels.items()
            }
            columns = [f"{d}{' it says' * (key == 'says')}" for key in ("right", "says") for d in DIMENSIONS]
            show(f"latent reward, {test}, {past}", rows, columns)
    made = kept(output / "made.pt", lambda: generate_clips(generator, real))
    pairs = LatentPairSampler(made, latent.space, MOTION_CORRUPTIONS, 5, vary=False).draw(LATENT_PAIRS)
    found["generated clips"] = latent_rows(latent, pairs, PASTS[1:])
    rows = {
        f"σ {sigma}": [row[d]["right"] for d in DIMENSIONS] for sigma, row in found["generated clips"][PASTS[1]].items()
    }
    show("latent reward on generated clips, learned damage, past clean", rows, list(DIMENSIONS))
    return {"latent": found, "real above generated": real_above_generated(dev, [own.clip for own in made], models)}


@torch.no_grad()
def main(corpus: Path, output: Path, only: str, figure: Path | None) -> None:
    """Train the baselines, measure, print."""
    output.mkdir(parents=True, exist_ok=True)
    clips, dev = kept(output / "clips.pt", lambda: [load_motion_clips(corpus, (split,)) for split in ("reward", "dev")])
    models: dict[str, Scores] = {SHIPPED: MotionReward.load()}
    for objective in BASELINES:
        path = output / f"{objective}.safetensors"
        if not path.is_file():
            with torch.enable_grad():
                train_motion_reward(MotionRewardTrainingConfig(objective=objective), clips).save(path)
        models[objective] = MotionReward.read(path)
    if only != "latent":
        (output / "scores.json").write_text(json.dumps(measure_scores(clips, dev, models), indent=1) + "\n")
    if only != "scores":
        found = measure_latent(output, dev, models)
        (output / "latent.json").write_text(json.dumps(found, indent=1) + "\n")
        if figure:
            draw(figure, {test: found["latent"][test] for test in DAMAGES})


@torch.no_grad()
def real_above_generated(dev: list[MotionClip], made: list[MotionClip], models: dict[str, Scores]) -> Rows:
    """Share of sentences whose real motion scores above what the generator makes of the same sound: nothing was trained
    on such pairs."""
    by_name = {clip.name: clip for clip in dev}
    pairs = [(by_name[own.name], own) for own in made if len(own.motion) > WINDOW_FRAMES]
    real, drawn = (torch.stack([pair[side].motion[1 : 1 + WINDOW_FRAMES] for pair in pairs]) for side in (0, 1))
    mel = torch.stack([own.mel[4 : 4 * (1 + WINDOW_FRAMES)].float() for own, _ in pairs])
    found: Rows = {}
    for name, scores in models.items():
        above = (scores(real, mel) > scores(drawn, mel)).float().mean(0).tolist()
        found[name] = dict(zip(DIMENSIONS, above, strict=True))
    show(
        f"real above generated, {len(pairs)} sentences",
        {name: list(row.values()) for name, row in found.items()}, list(DIMENSIONS),
    )  # fmt: skip
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", choices=("scores", "latent"), default="")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    main(given.corpus, given.output, given.only, given.figure)
