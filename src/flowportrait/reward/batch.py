"""What rewards see: samples, and everything that is known about them.

    motion · mel                     always                    frames(i) · places(i)   drawn on demand, once
    audio · portrait · transcript · reference · group          when whoever made the batch knows them
    policy · condition · latents                               only inside post-training

A reward names what it reads (its ``needs``); ``has`` says what a batch can offer. A finished video of any generator
becomes a batch through ``from_frames``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from flowportrait.media.video import FPS

if TYPE_CHECKING:
    from flowportrait.media.portrait import Portrait

Need = Literal[
    "motion", "mel", "frames", "places", "fps", "audio", "portrait", "transcript", "reference", "group", "policy",
]  # fmt: skip

FailureKind = Literal["no_face", "no_sound", "too_short", "unavailable", "refused", "malformed", "not_finite"]


class Failure(NamedTuple):
    """Why a sample has no score: a kind to count by and a sentence to read. ``unavailable`` may be tried again."""

    kind: FailureKind
    detail: str


NO_FAILURES: Mapping[int, Failure] = MappingProxyType({})

Draw = Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]
"""``(motion [B, T, 30], frame indices) -> frames [B, F, 3, H, W]`` float in [0, 1]: a small rendering."""

Place = Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]
"""``(motion [B, T, 30], frame indices) -> landmarks [B, F, 478, 2]`` in pixels of the drawn frames."""


@dataclass
class RewardBatch:
    """B samples of T frames.

    motion ``[B, T, 30]``; mel ``[B, 4T, 80]``; draw and place: see the types; audio ``[B, 640 T]`` 16 kHz mono;
    portraits, one per sample (``crop`` and its ``landmarks``); transcript, one text per sample; reference
    ``[B, T, 30]`` motion of the real clip; group ``[B]`` ids of siblings; policy with ``contexts`` and ``velocity``,
    its condition (or a function that makes it) and the clean latents ``[B, N, D]``; domain: which real pictures to
    compare with (``reward.real``); unseen: rows in which no face could be followed, and why.
    """

    fps: ClassVar[int] = FPS

    motion: torch.Tensor
    mel: torch.Tensor
    draw: Draw | None = None
    place: Place | None = None
    audio: torch.Tensor | None = None
    portraits: Sequence[Portrait] | None = None
    transcript: Sequence[str] | None = None
    reference: torch.Tensor | None = None
    group: torch.Tensor | None = None
    policy: Any = None
    condition: Any = None
    latents: torch.Tensor | None = None
    domain: Literal["drawn", "filmed"] = "drawn"
    unseen: Mapping[int, Failure] = field(default_factory=lambda: NO_FAILURES)
    _drawn: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)
    _placed: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # A drawing that knows where it puts landmarks and whom it draws need not be told apart.
        self.place = self.place or getattr(self.draw, "places", None)
        self.portraits = self.portraits or getattr(self.draw, "portraits", None)

    def __len__(self) -> int:
        return len(self.motion)

    @classmethod
    def from_frames(
        cls,
        frames: Sequence[np.ndarray],
        audio: Sequence[np.ndarray],
        fps: float = FPS,
        portraits: Sequence[Portrait] | None = None,
        transcript: Sequence[str] | None = None,
        group: torch.Tensor | None = None,
    ) -> RewardBatch:
        """Finished videos of any generator: RGB ``[T, H, W, 3]`` uint8 each at ``fps``, 16 kHz mono ``[N]`` each.

        See ``reward.finished`` for what is measured on them and how.

        Raises:
            BadInput: no frames, another type or shape, or clips of different lengths.
        """
        from flowportrait.reward.finished import from_frames

        return from_frames(frames, audio, fps, portraits, transcript, group)

    @property
    def has(self) -> frozenset[str]:
        """Which needs this batch can meet."""
        optional = {
            "frames": self.draw, "places": self.place, "audio": self.audio, "portrait": self.portraits,
            "transcript": self.transcript, "reference": self.reference, "group": self.group,
            "policy": None if self.latents is None else self.policy,
        }  # fmt: skip
        return frozenset({"motion", "mel", "fps"} | {need for need, given in optional.items() if given is not None})

    def frames(self, indices: tuple[int, ...]) -> torch.Tensor:
        """Rendered frames ``[B, F, 3, H, W]`` in [0, 1]; each is drawn once however many rewards ask."""
        return _once(self.draw, self.motion, indices, self._drawn)

    def places(self, indices: tuple[int, ...]) -> torch.Tensor:
        """Landmarks ``[B, F, 478, 2]`` in the pixels of ``frames``."""
        return _once(self.place, self.motion, indices, self._placed)

    def select(self, rows: torch.Tensor) -> RewardBatch:
        """The samples at ``rows`` ``[K]``; they share what has been drawn."""
        chosen = rows.tolist()
        values = {part.name: getattr(self, part.name) for part in fields(self) if not part.name.startswith("_")}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = value[rows]
        for name in ("portraits", "transcript"):
            if values[name] is not None:
                values[name] = [values[name][row] for row in chosen]
        if self.condition is not None:
            values["condition"] = (self.condition() if callable(self.condition) else self.condition).select(rows)
        if self.draw is not None:
            values["draw"] = lambda _, indices: self.frames(indices)[rows]
        if self.place is not None:
            values["place"] = lambda _, indices: self.places(indices)[rows]
        values["unseen"] = {new: self.unseen[old] for new, old in enumerate(chosen) if old in self.unseen}
        return RewardBatch(**values)


def _once(
    make: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor] | None,
    motion: torch.Tensor,
    indices: tuple[int, ...],
    made: dict[int, torch.Tensor],
) -> torch.Tensor:
    if make is None:
        raise ValueError("this batch cannot draw")
    missing = tuple(sorted(set(indices) - set(made)))
    if missing:
        made.update(zip(missing, make(motion, missing).unbind(1), strict=True))
    return torch.stack([made[index] for index in indices], 1)
