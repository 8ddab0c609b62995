"""Claims about the measured panel: it says that it measures, and its grades fall as damage grows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tools.fit_judge_scales import monotone

from flowportrait.judges.build import JudgeReward, JudgeSettings, build_judge, certificate_folders
from flowportrait.judges.measured_panel import EXPERTS, Experts, MeasuredPanel, Steadiness, concatenate_batches
from flowportrait.judges.rubric import CLIP_ASPECTS
from flowportrait.judges.sanity import require_certificate
from flowportrait.rewards.batch import Failure, RewardBatch
from flowportrait.rewards.interface import score_batch
from flowportrait.rewards.registry import build_reward
from tests.rewards.test_reward import lively

SIDE = 64


def seen(path: np.ndarray | torch.Tensor, motion: torch.Tensor | None = None) -> RewardBatch:
    """A face whose landmarks follow ``path [T, 2]`` px, on a textured picture."""
    track = torch.as_tensor(np.asarray(path), dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    face = 12 + 40 * torch.rand(478, 2, generator=generator)
    face[33], face[263] = torch.tensor([20.0, 30.0]), torch.tensor([44.0, 30.0])
    picture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 16, 16, generator=generator), size=(SIDE, SIDE), mode="bilinear"
    )
    places = face[None] + track[:, None]
    motion = lively(len(track)) if motion is None else motion
    return RewardBatch(
        motion, torch.rand(1, 4 * len(track), 80, generator=generator),
        lambda _, indices: picture[None].expand(1, len(indices), -1, -1, -1),
        lambda _, indices: places[None, list(indices)],
    )  # fmt: skip


def nod(frames: int = 56) -> np.ndarray:
    time = np.arange(frames) / 25
    return np.stack([1.5 * np.sin(2 * np.pi * 0.7 * time), 2 * np.sin(2 * np.pi * 1.1 * time)], 1)


def test_trembling_freezing_and_stillness_are_less_steady_than_a_nod() -> None:
    smooth, rng = nod(), np.random.default_rng(0)
    reward = Steadiness(floor=-5.0, unmoved=0.002)
    times = np.arange(len(smooth))
    frozen = smooth[np.where(times % 20 <= 6, times - times % 20, times)]

    def value(path: np.ndarray) -> float:
        return float(score_batch(reward, seen(path)).value[0])

    calm = value(smooth)
    shaken = [value(smooth + rng.normal(0, pixels, smooth.shape)) for pixels in (0.2, 0.6, 2.0)]
    assert calm > shaken[0] > shaken[1] > shaken[2]
    assert calm > value(frozen) + 0.5
    assert calm > value(np.zeros_like(smooth)) + 0.5


@pytest.mark.parametrize("name", [name for names in EXPERTS.values() for name in names])
def test_every_shipped_scale_rises_from_broken_to_real(name: str) -> None:
    figures, grades = np.array(Experts.load().scales[name].knots).T
    assert (np.diff(figures) > 0).all()
    assert (np.diff(grades) > 0).all()
    assert grades[0] < 2
    assert grades[-1] == 5
    assert Experts.load().scales[name](figures[0] - 100) == grades[0]


def test_figures_out_of_order_are_pooled() -> None:
    assert monotone([(5, 3.0), (4, 1.0), (3, 1.4), (2, 0.0)]) == [(0.0, 2.0), (1.2, 3.5), (3.0, 5.0)]
    assert monotone([(5, 3.0), (2, 0.5), (1, 0.7)])[0] == (0.6, 1)


def test_the_panel_says_that_it_measures_and_what() -> None:
    panel = MeasuredPanel()
    [findings] = panel.measure(seen(nod()), [False])
    assert panel.kind == "measured panel"
    for aspect in CLIP_ASPECTS:
        finding = findings[aspect]
        assert finding.score is not None
        assert 1 <= finding.score <= 5
        assert finding.decided_by == "measurement"
        assert finding.rationale.startswith("Measured, not looked at")
        assert finding.measured is not None
        assert set(finding.measured) == set(EXPERTS[aspect])


def test_nobody_grades_how_lips_fit_a_silence_or_a_face_that_is_not_there() -> None:
    [mute] = MeasuredPanel().measure(seen(nod()), [True])
    assert mute["lip_sync"].score is None
    assert mute["motion"].score is not None
    gone = seen(nod())
    gone.tracking_failures = {0: Failure("no_face", "turned away")}
    [findings] = MeasuredPanel().measure(gone, [False])
    for finding in findings.values():
        assert finding.score is None
        assert finding.failure is not None
        assert finding.failure.kind == "no_face"


def test_rows_keep_their_place_when_batches_are_joined() -> None:
    rng = np.random.default_rng(1)
    batches = [seen(nod()), seen(nod() + rng.normal(0, 2, (56, 2))), seen(nod(), 0.05 * lively())]
    together = JudgeReward(MeasuredPanel())(concatenate_batches(batches)).value
    alone = torch.cat([JudgeReward(MeasuredPanel())(batch).value for batch in batches])
    assert torch.allclose(together, alone, atol=1e-4)


def test_the_shipped_panel_has_passed_and_is_a_reward_by_name() -> None:
    require_certificate(build_judge(), certificate_folders(JudgeSettings()))
    reward = build_reward("panel")
    assert reward.name == "panel"
    found = score_batch(reward, seen(nod()))
    assert found.valid.all()
    assert 1 <= float(found.value[0]) <= 5
