"""A slow generator teaches a fast one: many guided steps against few bare ones, from the same noise.

    teacher   x_1 ·─·─·─·─·─► x_σ' ·─·─·─·─·─► x_0     the weights a run began with, its guidance, its many steps
    student   x_1 ──────────► x_σ' ──────────► x_0     the live weights, no guidance, the plan's steps

Every chunk is taught after the student's own past (Self Forcing, 2506.08009), where the teacher's performance of the
same speech earned more than the student's did (the gate of RATS, 2604.14910).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.posttrain.collect import Batch, join_scores
from flowportrait.posttrain.credit import Credit, CreditConfig, assign
from flowportrait.posttrain.objective.interface import Advantage
from flowportrait.reward.interface import Score

TEACHER = "teacher"
_SHOWN = f"{TEACHER}/"


@dataclass(frozen=True)
class Teacher:
    steps: int = 8
    """Euler steps over the whole way."""
    witnesses: int = 2
    """Performances of the teacher in every group, from the noise of the student's first ones; 0: no gate."""

    def __post_init__(self) -> None:
        at_least(self, steps=2, witnesses=0)

    def strides(self, student_steps: int) -> int:
        """Of its steps within one of the student's."""
        return max(1, round(self.steps / student_steps))


class Pace:
    """How a policy is drawn: in few steps and without guidance, and inside ``slow`` as it was delivered."""

    def __init__(self, policy: Any, steps: int) -> None:
        """Raises BadInput for a policy whose ``config`` does not say its steps."""
        config = getattr(policy, "config", None)
        if not is_dataclass(config) or isinstance(config, type) or not hasattr(config, "steps"):
            raise BadInput("This generator cannot be distilled: its config does not say in how many steps it is drawn.")
        unguided = {"guidance": 1.0} if hasattr(config, "guidance") else {}
        self.policy, self.own = policy, config
        policy.config = replace(config, steps=steps, **unguided)

    @contextmanager
    def slow(self) -> Iterator[None]:
        """As the teacher inside the block."""
        fast, self.policy.config = self.policy.config, self.own
        try:
            yield
        finally:
            self.policy.config = fast


def beside(own: Batch, shown: Batch) -> Batch:
    """The student's samples, and under names of their own the scores of what the teacher showed."""
    seconds = {name: taken + shown.seconds[name] for name, taken in own.seconds.items()}
    return Batch(own.trajectory, own.scores | {_SHOWN + name: s for name, s in shown.scores.items()}, seconds)


def apart(scores: Mapping[str, Score]) -> tuple[dict[str, Score], dict[str, Score]]:
    """Scores of the student's samples, and of the teacher's."""
    own = {name: score for name, score in scores.items() if not name.startswith(_SHOWN)}
    shown = {name.removeprefix(_SHOWN): score for name, score in scores.items() if name.startswith(_SHOWN)}
    return own, shown


def compared(
    own: Mapping[str, Score],
    group: torch.Tensor,
    shown: Mapping[str, Score],
    chunks: int,
    weights: Mapping[str, float],
    config: CreditConfig,
) -> tuple[Credit, torch.Tensor]:
    """Credit of the student's samples in groups ``[B]``, normalised together with the teacher's, and where ``[B, N]``
    the teacher's mean in the group is better. Witnesses come in the order of the groups, equally many in each."""
    families, mine = group.unique(), len(group)
    witnesses = len(next(iter(shown.values())).value) // len(families)
    everyone = torch.cat([group, families.repeat_interleave(witnesses)])
    credit = assign(join_scores([own, shown]), everyone, chunks, weights, config)
    # A witness that could not be judged says nothing; where none could, nothing is taught.
    valid = torch.stack(list(credit.valid.values())).all(0)
    known, theirs = (own[mine:].unflatten(0, (len(families), witnesses)) for own in (valid[:, None], credit.advantage))
    theirs = (theirs * known).sum(1) / known.sum(1).clamp_min(1)
    place = torch.searchsorted(families, group)
    theirs = theirs[place]
    better = (theirs > credit.advantage[:mine]) & known.any(1)[place]
    metrics = credit.metrics | {
        f"{TEACHER}/better": float(better.float().mean()),
        f"{TEACHER}/ahead": float((theirs - credit.advantage[:mine]).mean()),
    }
    for name, score in own.items():
        metrics[f"reward/{name}"] = float(score.value[score.valid].mean())
        metrics[f"{TEACHER}/{name}"] = float(shown[name].value[shown[name].valid].mean())
    return replace(credit.select(slice(mine)), metrics=metrics), better


def gated(advantage: Advantage, better: torch.Tensor) -> Advantage:
    """Advantages for an exponential weight: nothing is learned where the teacher is not ``better`` ``[B, N]``."""
    return replace(advantage, value=advantage.value.masked_fill(~better[:, :, None, None], -torch.inf))
