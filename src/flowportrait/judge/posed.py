"""Coarse to fine: somebody judges, and a body that cannot be caps the grade.

    motion = min( the judge's grade, scale(pose) )        pose: see ``pose``

After HuM-Eval (2604.25361), which lets a model look first and then asks for 2-D pose and 3-D motion. A plausible body
adds nothing to what the judge said.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import torch

from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.kind import Kind
from flowportrait.judge.measured import Experts
from flowportrait.judge.pose import HeadPose
from flowportrait.judge.verdict import Judge, Verdict


class PoseChecked:
    """A ``Judge`` over another."""

    def __init__(self, judge: Judge, experts: Experts | None = None) -> None:
        experts = experts or Experts.load()
        pose = experts.rewards[HeadPose.name]
        assert isinstance(pose, HeadPose), "experts know poses by landmarks alone"
        self.inner, self.pose, self.scale = judge, pose, experts.scales[HeadPose.name]

    @property
    def backend(self) -> Any:
        """Whose ledger is kept."""
        return getattr(self.inner, "backend", None)

    @property
    def name(self) -> str:
        return f"{self.inner.name}, pose checked"

    @property
    def kind(self) -> Kind:
        return self.inner.kind

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.inner.fingerprint} {self.pose} {self.scale}".encode()).hexdigest()[:16]

    def judge(self, exhibits: list[Exhibit]) -> list[Verdict]:
        """See ``Judge``."""
        return [self._capped(clip, verdict) for clip, verdict in zip(exhibits, self.inner.judge(exhibits), strict=True)]

    def _capped(self, exhibit: Exhibit, verdict: Verdict) -> Verdict:
        given = verdict.findings["motion"]
        if given.score is None:
            return verdict
        figure = float(self.pose.figures(torch.from_numpy(exhibit.landmarks[None])))
        cap = self.scale(figure)
        if cap >= given.score:
            return verdict
        why = f"{given.rationale} Capped from {given.score:.1f}: no head bends or turns like this ({figure:.2f})."
        finding = replace(
            given, score=cap, settled="measurement", rationale=why.strip(),
            measured={**(given.measured or {}), HeadPose.name: figure},
        )  # fmt: skip
        return replace(verdict, findings={**verdict.findings, "motion": finding})
