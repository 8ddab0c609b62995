"""Stages of the built-in methods: real clips in groups, exploration through the history, and distillation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.flow import guidance as inversion
from flowportrait.flow.guidance import Inversion
from flowportrait.flow.kernels import Kernel
from flowportrait.flow.noise import NoiseKey
from flowportrait.models.arflow import ARFlow, SpeechCondition
from flowportrait.models.arflow import ARFlowSession as CachedSession
from flowportrait.rl.collection import ScoredRollouts
from flowportrait.rl.credit import BatchCredit
from flowportrait.rl.objectives.interface import Advantage
from flowportrait.rl.plan import OdePlan, Plan, Policy
from flowportrait.rl.rollout import Trajectory, add_step_axis, join_trajectories, rollout, step_coefficients
from flowportrait.rl.stages import IterationRollouts, Metrics, RoleView, Stage

# --- Real clips in groups ---
#
#     group:  ○ ○ ○ ○ ○ ○ ○ ○ ●      ● the real clip of the same speech, inverted


@dataclass(frozen=True)
class Exemplars(Stage):
    """A stage that adds a real clip of the same speech to every group (PortraitGen, 2606.26930).

    The states on the path to the real clip come from inversion. An inverted path is not a sample of the stochastic
    policy: its residual (x' − a·x − b·v)/s is not unit normal, so its likelihood ratio is biased. The mean square of
    the residual is logged. Objectives that add noise to final samples (AWM, NFT, DPO) need no path and have no such
    bias.
    """

    inversion: Inversion = "two_step"
    """How the states on the path to a real clip are computed."""
    baseline: Literal["rollouts", "all"] = "rollouts"
    """What a group is normalised by: the policy's samples alone, or also the real clip. In both cases the real clip
    gets credit by the same rules (gate, floors, caps, win rate, chunks). With ``all`` most samples fall below the mean,
    and a step mainly pushes away from them."""
    limit: float = 1.5
    """Largest advantage of a real clip."""
    negative_limit: float = 1.5
    """Largest magnitude of a negative advantage of a real clip. Once samples score better than real clips, pushing away
    from the clips, which the policy does not sample, has no bound. With 0 nothing is pushed away from a real clip."""

    earlier_keys = (("push", "negative_limit"),)

    def augment_rollout(
        self, trajectory: Trajectory, groups: torch.Tensor, plan: Plan, rollouts: IterationRollouts
    ) -> Trajectory:
        """Return the rollout with the real clip of every group, inverted with the weights that made the rollout.

        Raises:
            BadInput: the task has no real clips.
        """
        policy, task, prompts = rollouts.policy, rollouts.task, rollouts.prompts.select(groups)
        latents = task.real(policy, prompts)
        if latents is None:
            raise BadInput(
                f"The recipe {rollouts.recipe_name} needs real clips: give a prepared corpus with --exemplars."
            )
        real = invert_real_clips(
            policy, task.condition(policy, prompts), latents, groups, rollouts.sample_count + groups, plan,
            rollouts.kernel, rollouts.noise_key, self.inversion,
        )  # fmt: skip
        return join_trajectories([trajectory, real])

    def baseline_rows(self, trajectory: Trajectory) -> torch.Tensor | None:
        """Return the mask of the policy's samples, or None if ``baseline`` is ``all``."""
        return ~trajectory.real if self.baseline == "rollouts" else None

    def adjust_advantage(
        self, advantage: Advantage, trajectory: Trajectory, credit: BatchCredit
    ) -> tuple[Advantage, Metrics]:
        """Return the advantages with those of the real clips limited.

        The metrics are ``exemplar/residual``, the mean square of the real clips' noise (1 for samples of the policy);
        ``exemplar/advantage``, the mean advantage of the real clips; and ``exemplar/negative``, the share of samples of
        the policy with a negative advantage.
        """
        real, value = trajectory.real, advantage.value.clone()
        value[real] = value[real].clamp(-self.negative_limit, self.limit)
        bounded = replace(advantage, value=value)
        metrics = {
            "exemplar/advantage": float(bounded.per_sample[real].mean()),
            "exemplar/negative": float((bounded.per_sample[~real] < 0).float().mean()),
        }
        if trajectory.trainable[real].any():
            metrics["exemplar/residual"] = float(trajectory.noise[real][trajectory.trainable[real]].square().mean())
        return bounded, metrics


@torch.no_grad()
def invert_real_clips(
    policy: Policy,
    condition: Any,
    latents: torch.Tensor,
    group: torch.Tensor,
    sample: torch.Tensor,
    plan: Plan,
    kernel: Kernel,
    key: NoiseKey,
    how: Inversion,
) -> Trajectory:
    """Return real latents ``[B, N, D]`` as a trajectory. Its noise is what the transitions imply under ``policy``.

    Args:
        policy: the generator.
        condition: its condition, one row per clip.
        latents: of the real clips.
        group: ids of the groups ``[B]``.
        sample: ids of the clips ``[B]``.
        plan: which steps are stochastic and recorded.
        kernel: the stochastic kernel.
        key: key of the noise of straight-line inversion.
        how: method of inversion.
    """
    chunks, size = latents.shape[1:]
    sigmas, record = plan.sigmas.to(latents.device), plan.record[group]
    context = policy.contexts(condition, latents)
    velocity = partial(policy.velocity, context=context)
    if how == "straight" or not record.shape[1]:  # no state of the path is used
        noise = [[key.normal(size, "real", int(i), chunk) for chunk in range(chunks)] for i in sample]
        states = inversion.straight_path_states(
            latents, torch.stack([torch.stack(row) for row in noise]).to(latents), sigmas
        )
    else:
        invert = inversion.invert_two_step if how == "two_step" else inversion.invert_euler
        states = invert(velocity, latents, sigmas)
    path = torch.stack(states, 2)
    noisy = plan.stochastic[group]
    table = step_coefficients(plan.sigmas, kernel, noisy)
    index = record[:, None].expand(-1, chunks, -1)

    def states_at(offset: int) -> torch.Tensor:
        where = (index + offset)[..., None].expand(-1, -1, -1, size).to(path.device)
        return path.gather(2, where)

    coefficients = type(table)(*(part[..., 0].gather(2, index)[..., None].to(path.device) for part in table))
    trainable = noisy.gather(2, index).to(path.device)
    x, x_next, sigma = states_at(0), states_at(1), plan.sigmas[record][:, None].to(path.device)
    implied = coefficients.noise(x, x_next, policy.velocity(x, sigma, add_step_axis(context)).float())
    return Trajectory(
        group=group, sample=sample, condition=condition, latents=latents, step=record, sigma=sigma,
        coefficients=coefficients, trainable=trainable,
        noise_source_id=sample[:, None, None].expand(-1, chunks, record.shape[1]),
        x=x, x_next=x_next, noise=torch.where(trainable[..., None], implied, 0),
        real=torch.ones(len(group), dtype=torch.bool),
    )  # fmt: skip


# --- Exploration through the history ---
#
#     history cache   ▒▒▒▒▒▒▒▒████   the last ``keep`` chunks unchanged,
#                     ▒ ▒▒  ▒▒▒▒██   a random choice of the older ones per sample


@dataclass(frozen=True)
class HistoryRouting(Stage):
    """A stage that explores through the history of chunks instead of through noise (KVPO, 2605.14278).

    Only the context of the next chunk is changed. The stored history stays unchanged, so that every sample continues
    from its own past.
    """

    keep: int = 4
    """Number of last chunks that are left unchanged."""
    chunks: int = 5
    """Consecutive chunks with a changed history, beginning at one that is drawn per iteration."""
    anchor: bool = False
    """Whether a group has one more sample, which does not explore and with which the others are compared in place of
    their mean: A = Σ w·(r − r_anchor) / std, the std with the anchor among the samples. It is not trained on."""
    anchor_limit: float = 2.5
    """Largest magnitude of an advantage over the anchor."""

    values_before = (("anchor", False),)

    def __post_init__(self) -> None:
        at_least(self, keep=1, chunks=1, anchor_limit=0)

    def augment_rollout(
        self, trajectory: Trajectory, groups: torch.Tensor, plan: Plan, rollouts: IterationRollouts
    ) -> Trajectory:
        """Return the rollout with the anchor of every group, from the noise that the group shares."""
        if not self.anchor:
            return trajectory
        policy, prompts = rollouts.policy, rollouts.prompts.select(groups)
        anchors = rollout(
            policy, rollouts.task.condition(policy, prompts), groups, rollouts.sample_count + groups, plan,
            rollouts.kernel, rollouts.noise_key, same_start=True,
        )  # fmt: skip
        return join_trajectories([trajectory, anchors])

    def adjust_advantage(
        self, advantage: Advantage, trajectory: Trajectory, credit: BatchCredit
    ) -> tuple[Advantage, Metrics]:
        """Return the advantages over the anchor; the anchor itself has none, and no sample has one without it.

        The metric ``anchor/better`` is the share of the explored samples with a positive advantage.
        """
        if not self.anchor:
            return advantage, {}
        group, sample = trajectory.group, trajectory.sample
        same = group[:, None] == group
        anchor = torch.where(same, sample, -1).argmax(1)  # the last sample of the same group
        explored = anchor != torch.arange(len(group))
        value = (advantage.value - advantage.value[anchor]).clamp(-self.anchor_limit, self.anchor_limit)
        valid = advantage.is_judged if advantage.valid is None else advantage.valid.flatten(1).all(1)
        valid = (valid & valid[anchor] & explored)[:, None, None, None]
        better = (value.flatten(1).mean(1)[explored] > 0).float().mean()
        return replace(advantage, value=value, valid=valid), {"anchor/better": float(better)}

    def start_session(
        self, policy: ARFlow, condition: SpeechCondition, sample: torch.Tensor, key: NoiseKey
    ) -> CachedSession:
        """Return a session with routed histories.

        Raises:
            BadInput: no chunk has a history beyond the chunks that are left unchanged.
        """
        if condition.chunks <= self.keep + 1:
            raise BadInput(
                f"{condition.chunks} chunks leave no past to explore beyond the {self.keep} nearest: raise frames or "
                "lower exploration.keep."
            )
        return RoutedSession(policy, condition, self, sample, key)


class RoutedSession(CachedSession):
    """A session that computes contexts from a random choice of the older chunks while it explores."""

    def __init__(
        self, policy: ARFlow, condition: SpeechCondition, routing: HistoryRouting, sample: torch.Tensor, key: NoiseKey
    ) -> None:
        super().__init__(policy, condition)
        self.routing = routing
        self.sample = sample.tolist()
        self.key = key
        last = max(1, condition.chunks - routing.chunks - routing.keep)
        self.first = routing.keep + 1 + int(key.integers(last, 1, "window"))

    def context(self) -> torch.Tensor:
        """Return the context of the next chunk. The true history is stored in any case."""
        chunk, exploring = self.position, self.first <= self.position < self.first + self.routing.chunks
        before = copy.deepcopy(self.cache) if exploring else None
        true_context = super().context()
        if before is None or before.get_seq_length() <= self.routing.keep:
            return true_context
        true_cache, self.cache = self.cache, before
        for layer in self.cache.layers:
            index = self._route(layer.keys.shape[2], chunk).to(layer.keys.device).repeat(len(self.branches), 1)
            index = index[:, None, :, None].expand_as(layer.keys)
            layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
        routed_context = super().context()
        self.cache = true_cache
        return routed_context

    def _route(self, length: int, chunk: int) -> torch.Tensor:
        """Return the indices ``[B, length]`` of the stored chunks that replace the history of every sample."""
        rows = []
        for sample in self.sample:
            older = max(0, length - self.routing.keep)
            choice = self.key.integers(max(1, older), older, "history", sample, chunk).sort().values
            rows.append(torch.cat([choice, torch.arange(older, length)]))
        return torch.stack(rows)


# --- Distillation ---
#
#     teacher   x_1 ·─·─·─·─·─► x_σ' ·─·─·─·─·─► x_0     starting weights, with guidance, many steps
#     student   x_1 ──────────► x_σ' ──────────► x_0     live weights, without guidance, the plan's steps

TEACHER = "teacher"
"""Name of the teacher's role."""


@dataclass(frozen=True)
class Teacher(Stage):
    """A stage that distils a generator with many guided steps into one with few unguided steps.

    The student's own chunks are the history of every chunk (Self Forcing, 2506.08009). A chunk is learned only where
    the teacher's samples of the same speech score better than the student's (the gate of RATS, 2604.14910). The teacher
    has the starting weights of the run with their own number of steps and guidance. The student is saved with the
    plan's number of steps and without guidance.
    """

    steps: int = 8
    """Euler steps of the teacher from noise to sample."""
    samples: int = 2
    """Samples of the teacher in every group, from the noise of the student's first samples. With 0 there is no gate."""

    roles = frozenset({TEACHER})
    distils = True
    earlier_keys = (("witnesses", "samples"),)

    def __post_init__(self) -> None:
        at_least(self, steps=2, samples=0)

    def strides(self, student_steps: int) -> int:
        """Return the number of the teacher's steps within one step of the student."""
        return max(1, round(self.steps / student_steps))

    def prepare_policy(self, policy: Any, steps: int) -> tuple[Any, Mapping[str, RoleView]]:
        """Return the student, which shares its weights with the policy, and the teacher's role.

        Raises:
            BadInput: the policy's ``config`` has no number of steps.
        """
        student = build_student(policy, steps)
        return student, {TEACHER: teacher_view(student, policy, self.strides(steps))}

    def collect_batch(self, rollouts: IterationRollouts, collect: Callable[[], ScoredRollouts]) -> ScoredRollouts:
        """Return the student's samples with the scores of the teacher's samples for comparison."""
        batch = collect()
        if not self.samples:
            return batch
        teacher_batch = rollouts.sample_and_score(OdePlan(self.steps), self.samples, TEACHER)
        seconds = {name: value + teacher_batch.seconds[name] for name, value in batch.seconds.items()}
        return replace(batch, comparison_scores=teacher_batch.scores, seconds=seconds)

    def adjust_advantage(
        self, advantage: Advantage, trajectory: Trajectory, credit: BatchCredit
    ) -> tuple[Advantage, Metrics]:
        """Return advantages of −∞ where the teacher is not better, so that the weight exp(A/τ) is zero there."""
        if not credit.comparison_scores:
            return advantage, {}
        better, metrics = mask_teacher_better(credit)
        better = better[credit.local_rows]
        return replace(advantage, value=advantage.value.masked_fill(~better[:, :, None, None], -torch.inf)), metrics


def build_student(policy: Any, steps: int) -> Any:
    """Return a copy of the policy that shares its weights and is sampled in ``steps`` steps without guidance.

    Raises:
        BadInput: the policy's ``config`` has no number of steps.
    """
    config = getattr(policy, "config", None)
    if not is_dataclass(config) or isinstance(config, type) or not hasattr(config, "steps"):
        raise BadInput("This generator cannot be distilled: its config does not say in how many steps it is drawn.")
    unguided = {"guidance": 1.0} if hasattr(config, "guidance") else {}
    student = copy.copy(policy)
    student.config = replace(config, steps=steps, **unguided)
    return student


def teacher_view(student: Any, policy: Any, strides: int = 0) -> RoleView:
    """Return the role of the policy as it was before it became a student: its starting weights, steps and guidance."""
    teacher_config = policy.config

    @contextmanager
    def teacher_settings() -> Iterator[None]:
        student_config, student.config = student.config, teacher_config
        try:
            yield
        finally:
            student.config = student_config

    return RoleView("ref", teacher_settings, strides)


def mask_teacher_better(credit: BatchCredit) -> tuple[torch.Tensor, Metrics]:
    """Return where the teacher's samples of a group have, on average, more credit than a sample, and metrics to log.

    Samples of the teacher that could not be scored do not count. If none of a group could be scored, the teacher is not
    better.

    Returns:
        A mask ``[B, N]`` of the samples and chunks of all processes, and metrics.
    """
    group, student = credit.group, credit.credit.advantage[: credit.sample_count]
    group_ids = group.unique()
    # The teacher's samples come in the order of the groups, the same number for each.
    scored = torch.stack(list(credit.credit.valid.values())).all(0)[:, None]
    valid, teacher = (
        rows[credit.sample_count :].unflatten(0, (len(group_ids), -1)) for rows in (scored, credit.credit.advantage)
    )
    teacher = (teacher * valid).sum(1) / valid.sum(1).clamp_min(1)
    index = torch.searchsorted(group_ids, group)
    teacher = teacher[index]
    better = (teacher > student) & valid.any(1)[index]
    metrics = {
        f"{TEACHER}/better": float(better.float().mean()),
        f"{TEACHER}/ahead": float((teacher - student).mean()),
    }
    for name, score in credit.scores.items():
        teacher_score = credit.comparison_scores[name]
        metrics[f"reward/{name}"] = float(score.value[score.valid].mean())
        metrics[f"{TEACHER}/{name}"] = float(teacher_score.value[teacher_score.valid].mean())
    return better, metrics
