"""Claims about asking a reward: what is missing, what is tried again, and what is never invented."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import (
    LONGEST_WAIT,
    Failure,
    RewardUnavailable,
    Score,
    all_valid,
    score_batch,
    score_with_failures,
)
from flowportrait.rewards.registry import build_reward
from flowportrait.rewards.relative import PairwiseWinReward
from flowportrait.rl.config import PostTrainConfig

GROUP = torch.tensor([0, 0, 0, 1, 1, 1])


def batch(**known: object) -> RewardBatch:
    motion = torch.arange(6.0)[:, None, None].expand(-1, 8, 30).clone()
    return RewardBatch(motion, torch.zeros(6, 32, 80), **known)  # type: ignore[arg-type]


@dataclass
class Flaky:
    """Fails as the script says, row by row: one set of rows per call."""

    script: list[set[int]]
    retries: int = 2
    scope: str = "sample"
    asked: list[list[int]] = field(default_factory=list)
    name: str = "flaky"
    needs: frozenset[str] = frozenset({"motion"})

    def __call__(self, batch: RewardBatch) -> Score:
        rows = batch.motion[:, 0, 0].int().tolist()
        self.asked.append(rows)
        down = self.script.pop(0) if self.script else set()
        lost = {place: Failure("unavailable", "503") for place, row in enumerate(rows) if row in down}
        return score_with_failures(batch.motion[:, 0, 0].clone(), lost)


def test_only_what_failed_is_asked_again_and_nothing_is_lost() -> None:
    waits: list[float] = []
    reward = Flaky([{1, 4}, {4}])
    found = score_batch(reward, batch(), waits.append)
    assert reward.asked == [[0, 1, 2, 3, 4, 5], [1, 4], [4]]
    assert found.valid.all()
    assert torch.equal(found.value, torch.arange(6.0))
    assert waits == [0.5, 1.0]


def test_after_the_last_try_a_sample_is_invalid_with_a_clear_last_word(caplog: pytest.LogCaptureFixture) -> None:
    waits: list[float] = []
    found = score_batch(Flaky([{1, 4}] * 9, retries=7), batch(), waits.append)
    assert found.valid.tolist() == [True, False, True, True, False, True]
    assert found.value.isnan().tolist() == (~found.valid).tolist()
    assert found.failures[4] == Failure("unavailable", "gave up after 8 tries: 503")
    assert "flaky gave up on 2 of 6 samples after 8 tries: 503" in caplog.text
    assert len(waits) == 7
    assert max(waits) == LONGEST_WAIT


def test_a_scorer_that_is_down_altogether_invalidates_and_does_not_raise() -> None:
    class Down:
        name, needs, retries = "down", frozenset({"motion"}), 1

        def __call__(self, batch: RewardBatch) -> Score:
            raise RewardUnavailable("connection refused")

    found = score_batch(Down(), batch(), lambda _: None)
    assert not found.valid.any()
    assert {failure.kind for failure in found.reasons.values()} == {"unavailable"}


def test_a_mistake_in_a_reward_is_not_hidden() -> None:
    class Wrong:
        name, needs, retries = "wrong", frozenset({"motion"}), 5

        def __call__(self, batch: RewardBatch) -> Score:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        score_batch(Wrong(), batch())


def test_numbers_that_cannot_be_are_invalid() -> None:
    class Odd:
        name, needs, range = "odd", frozenset({"motion"}), (1.0, 5.0)

        def __call__(self, batch: RewardBatch) -> Score:
            return all_valid(torch.tensor([1.0, 5.0, 7.0, math.nan, math.inf, 3.0]))

    found = score_batch(Odd(), batch())
    assert found.valid.tolist() == [True, True, False, False, False, True]
    assert found.failures[2] == Failure("malformed", "odd gave 7, outside [1, 5]")
    assert found.failures[3] is not None
    assert found.failures[3].kind == "not_finite"


def test_a_score_of_another_length_breaks_the_interface() -> None:
    class Short:
        name, needs = "short", frozenset({"motion"})

        def __call__(self, batch: RewardBatch) -> Score:
            return all_valid(torch.zeros(2))

    with pytest.raises(ValueError, match="2,\\) scores for 6"):
        score_batch(Short(), batch())


def test_a_missing_need_is_named() -> None:
    class Picky:
        name, needs = "picky", frozenset({"audio", "transcript"})

        def __call__(self, batch: RewardBatch) -> Score:
            raise AssertionError("never asked")

    with pytest.raises(BadInput, match="'picky' needs audio, transcript, which this batch does not have"):
        score_batch(Picky(), batch())


def test_where_no_face_was_seen_only_what_looks_at_faces_is_silent() -> None:
    blind = batch(tracking_failures={2: Failure("no_face", "turned away")})
    assert score_batch(Flaky([]), blind).valid.tolist() == [True, True, False, True, True, True]
    deaf = Flaky([], needs=frozenset({"mel"}))
    assert score_batch(deaf, blind).valid.all()


def test_group_scope_needs_groups_and_is_asked_about_whole_ones_again() -> None:
    with pytest.raises(BadInput, match="needs group"):
        score_batch(Flaky([], scope="group"), batch())
    reward = Flaky([{4}], scope="group")
    assert score_batch(reward, batch(group=GROUP), lambda _: None).valid.all()
    assert reward.asked[1] == [3, 4, 5]


def test_win_rates_come_from_settled_pairs_only() -> None:
    def prefer(batch: RewardBatch, a: int, b: int) -> float:
        return math.nan if {a, b} & {5} else float(a > b)

    drawing = batch(group=GROUP, draw=lambda motion, indices: torch.zeros(6, len(indices), 3, 4, 4))
    found = score_batch(PairwiseWinReward(prefer), drawing)
    assert found.value[:5].tolist() == [0.0, 0.5, 1.0, 0.0, 1.0]
    assert found.valid.tolist() == [True] * 5 + [False]
    assert found.failures[5] == Failure("refused", "no pair with this sample was settled")


def test_a_selection_shares_what_has_been_drawn() -> None:
    drawn: list[tuple[int, ...]] = []

    def draw(motion: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        drawn.append(indices)
        return motion[:, list(indices), :1, None, None].expand(-1, -1, 3, 4, 4)

    whole = batch(draw=draw, tracking_failures={4: Failure("no_face", "")}, transcript=list("abcdef"))
    whole.frames((0, 3))
    part = whole.select(torch.tensor([4, 1]))
    assert part.frames((3, 5))[:, 0, 0, 0, 0].tolist() == [4.0, 1.0]
    assert drawn == [(0, 3), (5,)]
    assert list(part.tracking_failures) == [0]
    assert part.transcript == ["e", "b"]


def test_random_scores_depend_on_the_sample_alone_and_are_uniform() -> None:
    motion = torch.randn(400, 8, 30, generator=torch.Generator().manual_seed(0))
    reward = build_reward("chance")
    values = reward(RewardBatch(motion, torch.zeros(400, 32, 80))).value
    assert torch.equal(values.flip(0), reward(RewardBatch(motion.flip(0), torch.zeros(400, 32, 80))).value)
    assert abs(float(values.mean()) - 0.5) < 0.05
    assert abs(float(values.std()) - 12**-0.5) < 0.03
    earlier = build_reward("random")
    assert earlier.name == "random"
    assert torch.equal(earlier(RewardBatch(motion, torch.zeros(400, 32, 80))).value, values)
    other = build_reward("chance_eyes")(RewardBatch(motion, torch.zeros(400, 32, 80))).value
    assert abs(float(torch.corrcoef(torch.stack([values, other]))[0, 1])) < 0.15


def test_the_random_control_keeps_weights_and_regions() -> None:
    config = PostTrainConfig.from_recipe("nft-regions")
    control = config.with_random_rewards()
    assert sum(control.rewards.by_name().values()) == pytest.approx(sum(config.rewards.by_name().values()))
    assert control.rewards.by_name() == pytest.approx({"chance_mouth": 1.05, "chance_eyes": 0.4, "chance_head": 0.4})
    assert control.allocation.regions == {"chance_mouth": "mouth", "chance_eyes": "eyes", "chance_head": "head"}
    assert PostTrainConfig.from_recipe("flow-grpo").with_random_rewards().rewards.by_name() == {"chance": 1.0}
