"""GSPO (2507.18071): a whole clip is clipped, not each of its transitions.

    s = exp( mean over transitions of log r ),   s_t = sg[s] · r_t / sg[r_t],   L = − mean min( s_t·A_t, clip(s_t)·A_t )

All transitions of a clip have the value s and each its own gradient, so that a chunk may still have an advantage of its
own; where the clip has one, this is the gradient of min(s·A, clip(s)·A). log r is summed over latent numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowportrait.config import at_least
from flowportrait.flow.noise import NoiseKey
from flowportrait.flow.ratio import log_ratio
from flowportrait.posttrain.objective.interface import Evidence, Loss, Points, masked_mean
from flowportrait.posttrain.trajectory import Trajectory


@dataclass(frozen=True)
class SequenceRatio:
    clip_low: float = 0.015
    clip_high: float = 0.02
    needs: frozenset[str] = frozenset({"old"})
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, clip_low=0, clip_high=0)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        return Points(trajectory.x, trajectory.sigma)

    def __call__(self, evidence: Evidence) -> Loss:
        trajectory, advantage = evidence.trajectory, evidence.advantage
        acted = evidence.others["old"] if trajectory.v_behaviour is None else trajectory.v_behaviour
        logs = advantage.reduce(log_ratio(trajectory.gain, trajectory.noise, evidence.live - acted), "sum")
        known = trajectory.trainable
        clip = (logs.sum(-1) * known).sum((1, 2)) / known.sum((1, 2)).clamp_min(1)
        ratio = (clip[:, None, None, None] - logs).detach().add(logs).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        signed = advantage.value.expand_as(ratio)
        gained = advantage.mask_invalid((ratio * signed).minimum(clipped * signed))
        total = -masked_mean(advantage.whole(gained, "sum"), known)
        sequence = clip.detach().exp()
        metrics = {
            "loss/policy": float(total.detach()),
            "ratio/mean": float(sequence.mean()),
            "ratio/std": float(sequence.std(correction=0)),
            "clip/share": float(((sequence < 1 - self.clip_low) | (sequence > 1 + self.clip_high)).float().mean()),
            "delta_v": float((evidence.live - acted).detach().square().mean().sqrt()),
        }
        return Loss(total, metrics)
