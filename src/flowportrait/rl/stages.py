"""Stages that a recipe hands to the trainer, and those of the methods that need one.

Stages: what a method adds to the trainer's loop, handed over by the recipe.

    collect_batch ─► start_session · augment_rollout ─► adjust_scores ─► baseline_rows ─► adjust_advantage
    whose samples    how they are explored, and what    before credit    what means       after credit
                     stands beside them                                  and spreads are of

The trainer calls every hook of every stage of its recipe, in order, and knows none of them. A stage is a frozen
dataclass that is both its settings and the thing itself; it overrides the hooks that its method needs, and every other
hook leaves things as they are. A recipe has stages in fields of its own (``exploration``, ``exemplars``, ``teacher``,
``offline_data``; see ``methods`` and ``given``) and any others in ``stages``:

    @dataclass(frozen=True)
    class Curriculum(Stage):
        hardest: float = 0.5

        def adjust_scores(self, scores, trajectory):
            ...

    replace(find_recipe("flow-grpo"), stages=(Curriculum(),))

The stages that come with the package: real clips in groups, exploration through the past, distillation.

    Exemplars        group:  ○ ○ ○ ○ ○ ○ ○ ○ ●      ● the real clip of the same speech, inverted

    HistoryRouting   history cache   ▒▒▒▒▒▒▒▒████   the nearest ``keep`` chunks as they were,
                                     ▒ ▒▒  ▒▒▒▒██   of the older ones a random choice, per sample

    Teacher          teacher   x_1 ·─·─·─·─·─► x_σ' ·─·─·─·─·─► x_0     the start, its guidance, its many steps
                     student   x_1 ──────────► x_σ' ──────────► x_0     the live weights, unguided, the plan's steps

Learning from clips that exist already is the stage of ``given``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.flow import guidance as inversion
from flowportrait.flow.guidance import Inversion
from flowportrait.flow.kernels import Kernel
from flowportrait.flow.noise import NoiseKey
from flowportrait.models.arflow import ARFlow, Condition
from flowportrait.models.arflow import Session as CachedSession
from flowportrait.rewards.interface import Score
from flowportrait.rl.credit import BatchCredit
from flowportrait.rl.objectives.interface import Advantage
from flowportrait.rl.plan import OdePlan, Plan, Planner, Policy, Session
from flowportrait.rl.rollout import Batch, Trajectory, add_step_axis, join_trajectories, step_table

Metrics = dict[str, float]


@dataclass(frozen=True)
class RoleView:
    """A role that a stage adds to ``live``, ``old``, ``ref`` and ``ema``: other weights, or other settings of the
    policy.

    Args:
        weights: the role that lends its weights.
        settings: puts the policy into this role's settings for a while.
        strides: Euler steps over which velocities are averaged, down to ``Points.until``; 0: the velocity itself.
    """

    weights: str
    settings: Callable[[], AbstractContextManager[None]] = nullcontext
    strides: int = 0


class IterationRollouts(Protocol):
    """The rollouts of one process in one iteration, as stages see them."""

    @property
    def policy(self) -> Any:
        """The policy that is trained."""
        ...

    @property
    def task(self) -> Any:
        """Where prompts come from, and conditions and batches of them."""
        ...

    @property
    def prompts(self) -> Any:
        """Prompts of all groups of all processes, one row per group."""
        ...

    @property
    def groups(self) -> torch.Tensor:
        """Ids ``[G]`` of this process's groups; they index ``prompts`` and the rows of plans."""
        ...

    @property
    def sample_count(self) -> int:
        """How many samples the rollouts of all processes have together; ids from there on are free."""
        ...

    @property
    def recipe_name(self) -> str:
        """What the recipe is called, for messages."""
        ...

    @property
    def kernel(self) -> Kernel:
        """The stochastic kernel."""
        ...

    @property
    def noise_key(self) -> NoiseKey:
        """The key of all noise of this iteration."""
        ...

    def rollout_mode(self, role: str | None = None) -> AbstractContextManager[None]:
        """The weights of a role (those that make rollouts), in evaluation mode, without gradients."""
        ...

    def sample_and_score(self, planner: Planner, group_size: int, role: str | None = None) -> Batch:
        """Further scored samples of every prompt under another plan and role, from the noise of the first siblings."""
        ...


class Stage:
    """One part of a method; every hook here leaves things as they are."""

    roles: frozenset[str] = frozenset()
    """Names of the roles that ``prepare_policy`` adds; an objective may need them."""

    def prepare_policy(self, policy: Any, steps: int) -> tuple[Any, Mapping[str, RoleView]]:
        """The policy to train, and roles by name. It must not change the policy that it is given.

        Args:
            policy: as it was handed to the trainer, or to the stage before.
            steps: denoising steps of the recipe's plan.
        """
        return policy, {}

    def collect_batch(self, rollouts: IterationRollouts, collect: Callable[[], Batch]) -> Batch:
        """The scored samples of an iteration; ``collect`` makes those of the stages behind, at last the rollouts."""
        return collect()

    def start_session(self, policy: Any, condition: Any, sample: torch.Tensor, key: NoiseKey) -> Session | None:
        """A session that explores, for samples with the ids ``[B]``; None for the policy's own."""
        return None

    def augment_rollout(
        self, trajectory: Trajectory, groups: torch.Tensor, plan: Plan, rollouts: IterationRollouts
    ) -> Trajectory:
        """The rollout of some groups with further samples of them."""
        return trajectory

    def adjust_scores(self, scores: Mapping[str, Score], trajectory: Trajectory) -> Mapping[str, Score]:
        """This process's scores ``[B]`` before they become credit."""
        return scores

    def baseline_rows(self, trajectory: Trajectory) -> torch.Tensor | None:
        """Which samples ``[B]`` means and spreads of groups are of; None for all."""
        return None

    def adjust_advantage(
        self, advantage: Advantage, trajectory: Trajectory, credit: BatchCredit
    ) -> tuple[Advantage, Metrics]:
        """This process's advantages after credit, and what to log."""
        return advantage, {}


TEACHER = "teacher"


@dataclass(frozen=True)
class Exemplars(Stage):
    """A real clip of the same speech in every group (PortraitGen, 2606.26930), with the states it would have passed.

    An inverted path is no sample of the stochastic policy: its residual (x' − a·x − b·v)/s is not unit normal, so its
    ratio is biased; the residual's mean square is logged. Objectives that noise finished samples (AWM, NFT, DPO) need
    no path and have no such bias.
    """

    inversion: Inversion = "straight"
    """How the states on the way to a real clip are found."""
    baseline: Literal["rollouts", "all"] = "rollouts"
    """What a group is normalised by: its own samples alone, or the real clip as well. Either way a real clip is
    credited by the same rules as they are (gate, floors, caps, win rate, chunks). With ``all`` most own samples fall
    below the mean and a step only pushes away."""
    limit: float = 1.5
    """Largest advantage of a real clip."""
    negative_limit: float = 1.5
    """Largest negative advantage of a real clip. Where samples come to score better than what is real, there is no end
    to pushing away from what no policy draws; with 0 nothing is ever pushed away from a real clip."""

    earlier_keys = (("push", "negative_limit"),)

    def augment_rollout(
        self, trajectory: Trajectory, groups: torch.Tensor, plan: Plan, rollouts: IterationRollouts
    ) -> Trajectory:
        """The rollout with the real clip of every group, inverted under the weights that made the rollout.

        Raises:
            BadInput: the task has no real clips.
        """
        policy, task, prompts = rollouts.policy, rollouts.task, rollouts.prompts.select(groups)
        latents = task.real(policy, prompts)
        if latents is None:
            raise BadInput(
                f"The recipe {rollouts.recipe_name} needs real clips: give a prepared corpus with --exemplars."
            )
        real = invert(
            policy, task.condition(policy, prompts), latents, groups, rollouts.sample_count + groups, plan,
            rollouts.kernel, rollouts.noise_key, self.inversion,
        )  # fmt: skip
        return join_trajectories([trajectory, real])

    def baseline_rows(self, trajectory: Trajectory) -> torch.Tensor | None:
        """A group's own samples, unless ``baseline`` is ``all``."""
        return ~trajectory.real if self.baseline == "rollouts" else None

    def adjust_advantage(
        self, advantage: Advantage, trajectory: Trajectory, credit: BatchCredit
    ) -> tuple[Advantage, Metrics]:
        """Advantages with those of the real clips inside their bounds.

        Logs ``residual``, the mean square of real clips' noise (1 if they were samples of the policy); ``advantage`` of
        the real clips; ``negative``, the share of own samples that this step pushes away from.
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
def invert(
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
    """Real latents ``[B, N, D]`` as a trajectory; the recorded noise is what the transitions imply under ``policy``."""
    chunks, size = latents.shape[1:]
    sigmas, record = plan.sigmas.to(latents.device), plan.record[group]
    context = policy.contexts(condition, latents)
    velocity = partial(policy.velocity, context=context)
    if how == "straight":
        noise = [[key.normal(size, "real", int(i), chunk) for chunk in range(chunks)] for i in sample]
        states = inversion.straight(latents, torch.stack([torch.stack(row) for row in noise]).to(latents), sigmas)
    else:
        states = getattr(inversion, how)(velocity, latents, sigmas)
    path = torch.stack(states, 2)
    noisy = plan.stochastic[group]
    table = step_table(plan.sigmas, kernel, noisy)
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


@dataclass(frozen=True)
class HistoryRouting(Stage):
    """Exploring through the past instead of through noise (KVPO, 2605.14278).

    Only the context of the chunk to come is changed; what is stored stays true, so every sample's past is its own.
    """

    keep: int = 4
    """Chunks of the past that are left alone."""
    chunks: int = 5
    """Chunks in a row that look at a changed past, beginning at one drawn per iteration."""

    def __post_init__(self) -> None:
        at_least(self, keep=1, chunks=1)

    def start_session(self, policy: ARFlow, condition: Condition, sample: torch.Tensor, key: NoiseKey) -> CachedSession:
        """A session whose contexts see a routed past where they explore.

        Raises:
            BadInput: no chunk has a past beyond what is left alone.
        """
        if condition.chunks <= self.keep + 1:
            raise BadInput(
                f"{condition.chunks} chunks leave no past to explore beyond the {self.keep} nearest: raise frames or "
                "lower exploration.keep."
            )
        return RoutedSession(policy, condition, self, sample, key)


class RoutedSession(CachedSession):
    """A session whose contexts see a random choice of the older chunks while it explores."""

    def __init__(
        self, policy: ARFlow, condition: Condition, routing: HistoryRouting, sample: torch.Tensor, key: NoiseKey
    ) -> None:
        super().__init__(policy, condition)
        self.routing = routing
        self.sample = sample.tolist()
        self.key = key
        last = max(1, condition.chunks - routing.chunks - routing.keep)
        self.first = routing.keep + 1 + int(key.integers(last, 1, "window"))

    def context(self) -> torch.Tensor:
        """Context of the next chunk; the true past is stored either way."""
        chunk, exploring = self.position, self.first <= self.position < self.first + self.routing.chunks
        before = copy.deepcopy(self.cache) if exploring else None
        true = super().context()
        if before is None or before.get_seq_length() <= self.routing.keep:
            return true
        kept, self.cache = self.cache, before
        for layer in self.cache.layers:
            index = self._route(layer.keys.shape[2], chunk).to(layer.keys.device).repeat(len(self.branches), 1)
            index = index[:, None, :, None].expand_as(layer.keys)
            layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
        routed = super().context()
        self.cache = kept
        return routed

    def _route(self, length: int, chunk: int) -> torch.Tensor:
        """Which stored chunk stands at each place ``[B, length]``."""
        rows = []
        for sample in self.sample:
            older = max(0, length - self.routing.keep)
            chosen = self.key.integers(max(1, older), older, "history", sample, chunk).sort().values
            rows.append(torch.cat([chosen, torch.arange(older, length)]))
        return torch.stack(rows)


@dataclass(frozen=True)
class Teacher(Stage):
    """A slow generator teaches a fast one: many guided steps against few unguided ones, from the same noise.

    Every chunk is taught after the student's own past (Self Forcing, 2506.08009), where the teacher's samples of the
    same speech score better than the student's (the gate of RATS, 2604.14910). The teacher is the start of the run as
    it was delivered; the student is delivered with the plan's steps and without guidance.
    """

    steps: int = 8
    """The teacher's Euler steps over the whole way."""
    samples: int = 2
    """Samples of the teacher in every group, from the noise of the student's first ones; 0: no gate."""

    roles = frozenset({TEACHER})
    earlier_keys = (("witnesses", "samples"),)

    def __post_init__(self) -> None:
        at_least(self, steps=2, samples=0)

    def strides(self, student_steps: int) -> int:
        """Steps of the teacher within one of the student's."""
        return max(1, round(self.steps / student_steps))

    def prepare_policy(self, policy: Any, steps: int) -> tuple[Any, Mapping[str, RoleView]]:
        """The student, which shares its weights with the policy, and the teacher's role.

        Raises:
            BadInput: the policy's ``config`` does not say in how many steps it is drawn.
        """
        student, delivered = student_of(policy, steps), policy.config

        @contextmanager
        def as_delivered() -> Iterator[None]:
            fast, student.config = student.config, delivered
            try:
                yield
            finally:
                student.config = fast

        return student, {TEACHER: RoleView("ref", as_delivered, self.strides(steps))}

    def collect_batch(self, rollouts: IterationRollouts, collect: Callable[[], Batch]) -> Batch:
        """The student's samples, and the scores of the teacher's to compare them with."""
        batch = collect()
        if not self.samples:
            return batch
        taught = rollouts.sample_and_score(OdePlan(self.steps), self.samples, TEACHER)
        seconds = {name: own + taught.seconds[name] for name, own in batch.seconds.items()}
        return replace(batch, comparison_scores=taught.scores, seconds=seconds)

    def adjust_advantage(
        self, advantage: Advantage, trajectory: Trajectory, credit: BatchCredit
    ) -> tuple[Advantage, Metrics]:
        """Advantages for an exponential weight: nothing is learned where the teacher is not better."""
        if not credit.comparison_scores:
            return advantage, {}
        better, metrics = teacher_is_better(credit)
        better = better[credit.own_rows]
        return replace(advantage, value=advantage.value.masked_fill(~better[:, :, None, None], -torch.inf)), metrics


def student_of(policy: Any, steps: int) -> Any:
    """A policy with the same weights that is drawn in ``steps`` steps without guidance; ``policy`` stays as it is.

    Raises:
        BadInput: its ``config`` does not say in how many steps it is drawn.
    """
    config = getattr(policy, "config", None)
    if not is_dataclass(config) or isinstance(config, type) or not hasattr(config, "steps"):
        raise BadInput("This generator cannot be distilled: its config does not say in how many steps it is drawn.")
    unguided = {"guidance": 1.0} if hasattr(config, "guidance") else {}
    student = copy.copy(policy)
    student.config = replace(config, steps=steps, **unguided)
    return student


def teacher_is_better(credit: BatchCredit) -> tuple[torch.Tensor, Metrics]:
    """Where ``[B, N]`` the mean of the teacher's samples in the group has more credit than a sample, and what to log.

    A sample of the teacher that could not be judged does not count; where none could, the teacher is not better.
    """
    group, own = credit.group, credit.credit.advantage[: credit.sample_count]
    families = group.unique()
    # The teacher's come in the order of the groups, equally many in each.
    valid = torch.stack(list(credit.credit.valid.values())).all(0)[:, None]
    known, theirs = (
        rows[credit.sample_count :].unflatten(0, (len(families), -1)) for rows in (valid, credit.credit.advantage)
    )
    theirs = (theirs * known).sum(1) / known.sum(1).clamp_min(1)
    place = torch.searchsorted(families, group)
    theirs = theirs[place]
    better = (theirs > own) & known.any(1)[place]
    metrics = {
        f"{TEACHER}/better": float(better.float().mean()),
        f"{TEACHER}/ahead": float((theirs - own).mean()),
    }
    for name, score in credit.scores.items():
        taught = credit.comparison_scores[name]
        metrics[f"reward/{name}"] = float(score.value[score.valid].mean())
        metrics[f"{TEACHER}/{name}"] = float(taught.value[taught.valid].mean())
    return better, metrics
