"""The doctor names what was broken on purpose, and finds nothing where nothing is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from flowportrait.cli import main
from flowportrait.config import save, to_dict
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl import learner as learner_module
from flowportrait.rl.doctor import MetricsRecord, current_metrics, diagnose_run
from flowportrait.rl.loop import find_stop_reason, is_best_checkpoint
from flowportrait.rl.objectives.interface import Loss, LossInputs
from flowportrait.rl.objectives.ratio import ClippedRatio
from flowportrait.rl.trainer import Trainer
from tests.rl.test_posttrain import RECIPE, Lift, trainer

QUICK = replace(RECIPE, learning_rate=3e-4)


@dataclass(frozen=True)
class Constant:
    """Says the same of everybody."""

    name: str = "constant"
    needs: frozenset[str] = frozenset({"motion"})

    def __call__(self, batch: RewardBatch) -> Score:
        return all_valid(torch.full((len(batch.motion),), 3.0))


def records(run: Trainer, iterations: int = 4) -> list[MetricsRecord]:
    return [run.step() for _ in range(iterations)]


def ratio_off() -> list[MetricsRecord]:
    run = trainer(QUICK)
    run.policy.head.register_forward_hook(lambda _, __, v: v + 1e-4 * torch.randn_like(v))
    return records(run)


def kl_without_gradient() -> list[MetricsRecord]:
    plain = ClippedRatio.__call__

    def deaf(self: ClippedRatio, evidence: LossInputs) -> Loss:
        loss = plain(replace(self, kl_weight=0.0), evidence)
        return Loss(loss.total, {**loss.metrics, "kl": 0.1, "kl/has_gradient": 0.0})

    run = trainer(QUICK)
    run.recipe = replace(QUICK, objective=Called(deaf))
    return records(run)


@dataclass(frozen=True)
class Called:
    """An objective made of a function."""

    call: Callable[[ClippedRatio, LossInputs], Loss]
    needs = frozenset({"old", "ref"})
    whole_groups = False
    points = ClippedRatio().points

    def __call__(self, evidence: LossInputs) -> Loss:
        return self.call(ClippedRatio(), evidence)


def starved_reward() -> list[MetricsRecord]:
    run = trainer(QUICK)
    run.rewards = CompositeReward((Lift(), Constant()), {"lift": 0.5, "constant": 0.5})
    return records(run)


def dead_groups() -> list[MetricsRecord]:
    run = trainer(QUICK)
    run.rewards = CompositeReward((Constant(),), {"constant": 1.0})
    return records(run)


def updates_skipped() -> list[MetricsRecord]:
    run = trainer(QUICK)
    credit = run.credit

    def overflown(*given):  # type: ignore[no-untyped-def]
        advantage, metrics = credit(*given)
        advantage.value[0] = float("inf")
        return advantage, metrics

    run.credit = overflown  # type: ignore[method-assign]
    return records(run)


def hacking() -> list[MetricsRecord]:
    run, seen = trainer(replace(QUICK, learning_rate=3e-3)), []
    start = float(run.task.batch(run.policy, run.collect().trajectory, prompts(run)).motion[..., 0].mean())
    for iteration in range(16):
        record = run.step()
        if iteration % 4 == 0:
            # An evaluation that dislikes what the reward pays for.
            record["evaluation/sync"] = 1.0 - 0.5 * (record["reward/lift"] - start)
        seen.append(record)
    return seen


def prompts(run: Trainer):  # type: ignore[no-untyped-def]
    drawn = run.task.draw(3, 0, 0)
    return drawn.select(torch.arange(3).repeat_interleave(8))


def velocity_inflation() -> list[MetricsRecord]:
    run = trainer(QUICK)
    seen = [run.step()]
    run.policy.head.write.weight.data *= 2
    run.policy.head.write.bias.data *= 2
    return [*seen, *records(run, 2)]


BROKEN: dict[str, Callable[[], list[MetricsRecord]]] = {
    "ratio off": ratio_off, "KL without gradient": kl_without_gradient, "starved reward": starved_reward,
    "dead groups": dead_groups, "updates skipped": updates_skipped, "hacking": hacking,
    "velocity inflation": velocity_inflation,
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_the_doctor_names_what_was_broken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "ratio off":
        monkeypatch.setattr(learner_module, "check_replayed_noise", lambda *_: 0.0)
    found = diagnose_run(BROKEN[kind](), to_dict(RECIPE))
    assert [finding.kind for finding in found][:1] == [kind]


def test_a_healthy_run_has_no_findings_and_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = records(trainer(QUICK), 6)
    assert diagnose_run(seen, to_dict(QUICK)) == []
    assert main(["doctor", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    save(QUICK, tmp_path / "recipe.json")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in seen))
    assert main(["doctor", str(tmp_path)]) == 0
    assert "nothing found in 6 iterations" in capsys.readouterr().out


def looks(*values: float, amplitude: float = 1.0) -> list[MetricsRecord]:
    rewards = {"spread/r": 1.0}
    return [
        {"iteration": i, "reward/r": 0.2 * i, **rewards,
         **({"evaluation/sync": values[i // 5], "evaluation/amplitude": amplitude if i else 1.0} if i % 5 == 0 else {})}
        for i in range(5 * len(values))
    ]  # fmt: skip


def test_a_run_stops_when_evaluation_stays_worse_while_rewards_rise() -> None:
    assert find_stop_reason(looks(1.0, 1.1, 0.8, 0.7, 0.6), patience=3)
    assert not find_stop_reason(looks(1.0, 1.1, 0.8, 0.95, 0.6), patience=3)
    assert not find_stop_reason(looks(1.0, 1.1, 1.2, 1.3, 1.2), patience=3)
    flat = [{**record, "reward/r": 0.0} for record in looks(1.0, 0.8, 0.8, 0.7, 0.6)]
    assert not find_stop_reason(flat, patience=3)


@pytest.mark.parametrize(
    ("values", "worse"),
    [
        ((-0.5, -0.49, -0.48, -0.47, -0.47), False), ((-0.5, -0.4, -0.2, 0.1, 0.2), False),
        ((-0.5, -0.6, -0.7, -0.7, -0.7), True), ((-0.01, -0.008, -0.012, -0.01, -0.012), False),
        ((0.0, 0.001, -0.002, -0.003, -0.001), False), ((0.02, -0.1, -0.1, -0.2, -0.1), True),
        ((0.5, 0.46, 0.47, 0.46, 0.47), False), ((0.5, 0.44, 0.43, 0.44, 0.43), True),
    ],
    ids=["better", "across zero", "worse", "noise", "from zero", "through zero", "within", "beyond"],
)  # fmt: skip
def test_an_evaluation_of_either_sign_is_worse_when_it_falls_and_not_when_it_rises(
    values: tuple[float, ...], worse: bool
) -> None:
    seen = looks(*values)
    assert (find_stop_reason(seen, patience=3) is not None) == worse
    assert ("hacking" in [finding.kind for finding in diagnose_run(seen, {})]) == worse


def test_the_best_look_is_evaluations_and_exaggeration_is_no_merit() -> None:
    assert is_best_checkpoint(looks(1.0, 1.1, 1.2))
    assert not is_best_checkpoint(looks(1.0, 1.3, 1.2))
    assert not is_best_checkpoint(looks(1.0, 1.1, 1.2, amplitude=2.5))


def test_metrics_of_version_0_1_are_read() -> None:
    lines = [{"iteration": 1.0, "grad_norm": 1.0, "kl": 0.1, "kl/trains": 0.0, "reward/sync": 1.0}]
    found = diagnose_run(lines, {"objective": {"kl_weight": 0.1}})
    assert "KL without gradient" in [finding.kind for finding in found]
    assert current_metrics({"silent/sync": 0.5, "reward/sync": 1.0}) == {"degenerate/sync": 0.5, "reward/sync": 1.0}


NEEDS = {"sharpness": {"frames", "places"}, "crowd_head": {"motion"}, "sync": {"motion", "mel"}, "chance": {"motion"}}


def history(iterations: int = 30, noise: float = 0.0, seed: int = 0, **gains: float) -> list[MetricsRecord]:
    """Rewards that rise by so many group spreads over a run, with noise of the mean in spreads."""
    draw = torch.Generator().manual_seed(seed)

    def value(gain: float, i: int) -> float:
        return 0.1 * (gain * i / iterations + noise * float(torch.randn((), generator=draw)))

    return [
        {"iteration": i, "grad_norm": 1.0} | {f"reward/{name}": value(gain, i) for name, gain in gains.items()}
        | {f"spread/{name}": 0.1 for name in gains}
        for i in range(iterations)
    ]  # fmt: skip


def kinds(seen: list[MetricsRecord], needs: Mapping[str, Iterable[str]] = NEEDS) -> list[str]:
    return [finding.kind for finding in diagnose_run(seen, {}, needs)]


def test_a_gain_of_rewards_that_read_neither_speech_nor_portrait_is_blind() -> None:
    # As in UniRL issue 418: the sum rises, while the only reward that reads the condition falls.
    seen = history(sharpness=3.0, crowd_head=1.0, sync=-0.5)
    (finding,) = diagnose_run(seen, {}, NEEDS)
    assert finding.kind == "the gain is blind"
    assert "sharpness +2.0, crowd_head +0.7" in finding.seen
    assert "none rose: sync -0.3" in finding.seen
    assert "no reward of this run reads them" in diagnose_run(history(sharpness=3.0), {}, NEEDS)[0].seen


@pytest.mark.parametrize(
    "seen",
    [
        history(sharpness=3.0, sync=1.0),  # a reward that reads the speech rises too
        history(sharpness=0.2, sync=0.0),  # nothing rises
        history(12, sharpness=3.0, sync=0.0),  # too few iterations to tell
        history(chance=3.0),  # the control
    ],
    ids=["anchored", "flat", "short", "control"],
)
def test_a_gain_that_is_not_blind_is_not_called_so(seen: list[MetricsRecord]) -> None:
    assert kinds(seen) == []


def test_scatter_is_rarely_called_a_blind_gain_and_a_rise_above_it_nearly_always() -> None:
    scatter = sum(bool(kinds(history(noise=1.0, seed=seed, sharpness=0.0, crowd_head=0.0))) for seed in range(200))
    risen = sum(bool(kinds(history(noise=1.0, seed=seed, sharpness=5.0, sync=0.0))) for seed in range(200))
    assert scatter <= 4
    assert risen >= 190


def test_without_the_needs_of_its_rewards_a_gain_is_not_called_blind() -> None:
    assert kinds(history(sharpness=3.0), {}) == []


def evaluations(**measures: Sequence[float]) -> list[MetricsRecord]:
    count = len(next(iter(measures.values())))
    return [
        {"iteration": 10 * i, "grad_norm": 1.0, **{f"evaluation/{name}": v[i] for name, v in measures.items()}}
        for i in range(count)
    ]


def test_a_held_out_gain_within_the_controls_is_no_better_than_chance() -> None:
    run = evaluations(sync=[0.5, 0.55, 0.56, 0.55], trembling=[0.3, 0.25, 0.25, 0.25], head=[3.0, 5.0, 6.0, 6.0])
    control = evaluations(sync=[0.5, 0.52, 0.6, 0.5], trembling=[0.3, 0.2, 0.3, 0.3], head=[3.0, 3.0, 3.0, 3.0])
    (finding,) = diagnose_run(run, {}, {}, control)
    assert finding.kind == "no better than chance"
    assert "sync +0.055 (control up to +0.100)" in finding.seen
    assert "trembling -0.050 (control up to -0.100)" in finding.seen


@pytest.mark.parametrize(
    ("run", "control"),
    [
        (evaluations(sync=[0.5, 0.6, 0.65, 0.66]), evaluations(sync=[0.5, 0.52, 0.55, 0.5])),  # better
        # Better in one measure of two, of which lower is better.
        (evaluations(sync=[0.5, 0.5, 0.5], trembling=[0.3, 0.1, 0.1]),
         evaluations(sync=[0.5, 0.6, 0.5], trembling=[0.3, 0.25, 0.3])),
        (evaluations(sync=[0.5, 0.5]), evaluations(sync=[0.5, 0.6])),  # too few evaluations
        (evaluations(head=[3.0, 3.0, 3.0]), evaluations(head=[3.0, 6.0, 6.0])),  # no direction is better
        (evaluations(sync=[0.5, 0.5, 0.5]), []),  # no control
    ],
    ids=["better", "lower", "few", "head", "alone"],
)  # fmt: skip
def test_a_gain_beyond_the_controls_or_unknown_is_not_called_chance(
    run: list[MetricsRecord], control: list[MetricsRecord]
) -> None:
    assert diagnose_run(run, {}, {}, control) == []


def test_the_command_compares_a_run_with_the_control_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, config, values in (
        ("run", QUICK, [0.5, 0.5, 0.5]), ("run-chance", QUICK.with_random_rewards(), [0.5, 0.6, 0.6])
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        save(config, tmp_path / name / "recipe.json")
        manifest = {"start": {"name": "sft", "sha256": "0"}, "prompts": {}, "files": {}, "needs": {}}
        (tmp_path / name / "run.json").write_text(json.dumps(manifest))
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, evaluations(sync=values))))
    assert main(["doctor", str(tmp_path / "run")]) == 0
    assert "no better than chance" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "run-chance")]) == 0
    assert "nothing found" in capsys.readouterr().out
