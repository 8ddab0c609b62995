"""What is asked of a model, as one value with an address: the same question about the same clip is asked once.

address = SHA-256( clip's digest, who, aspect, sample, rubric, what is shown, the words )
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flowportrait.judge.evidence import Evidence
from flowportrait.judge.kind import Kind
from flowportrait.judge.opinion import Opinion, Reply
from flowportrait.judge.rubric import Aspect, rubric_text, rubric_version
from flowportrait.reward.batch import Failure

SYSTEM = (
    "You are one of several specialists who grade videos of talking faces for research. You judge one aspect only, by "
    "the rubric, from what you are shown, and say nothing that you cannot see or hear in it."
)
ANSWER = (
    "First look and listen, then answer with one JSON object and nothing else: "
    '{"rationale": "two or three sentences", "errors": [{"start": seconds, "end": seconds, "what": "a few words"}], '
    '"score": 1 to 5}. Leave the list empty if there are no errors.'
)
_REVIEWER = (
    "You are the reviewer of a panel that grades videos of talking faces. Specialists were asked independently, "
    "several times each, and disagree. Weigh what they say against what you are shown and settle each disputed aspect. "
    "Your score lies between the lowest and the highest of the specialists'."
)


@dataclass(frozen=True)
class Question:
    """system and text: the words; aspect: as a tag that servers of this package understand; show: makes the evidence,
    called only if somebody has to look; content: what makes the clip what it is; sample: the how-manieth time the same
    is asked; check: raises ``Unusable`` for a reply that is no answer."""

    system: str
    text: str
    aspect: str
    content: str
    sample: int
    check: Callable[[Reply], object]
    show: Callable[[], Evidence] = field(repr=False)

    def address(self, who: str) -> str:
        """Where the answer of ``who`` is kept."""
        parts = [who, self.content, self.aspect, str(self.sample), rubric_version(), self.system, self.text]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


Keep = Callable[[int, Reply], None]
"""Called with the place of a question and its reply as soon as there is one."""


class Backend(Protocol):
    """Whoever answers questions about pictures and sound."""

    @property
    def who(self) -> str:
        """Model and settings that change its answers: part of every address."""
        ...

    @property
    def kind(self) -> Kind:
        """Whether a model looks or experts measure."""
        ...

    def ask(self, questions: Sequence[Question], keep: Keep) -> dict[int, Failure]:
        """Ask all; every usable reply goes to ``keep``, the rest comes back as failures by place."""
        ...


def reviewer(
    disputed: dict[Aspect, Sequence[Opinion]], seconds: float, rubric: Callable[[Aspect], str] = rubric_text
) -> tuple[str, str]:
    """System and user words about the aspects on which specialists disagree."""
    blocks = []
    for aspect, opinions in disputed.items():
        said = [
            {"score": opinion.written, "rationale": opinion.rationale, "errors": [f._asdict() for f in opinion.flaws]}
            for opinion in opinions
        ]
        blocks.append(f"{rubric(aspect)}\nSpecialists on {aspect}:\n{json.dumps(said, ensure_ascii=False)}")
    wanted = json.dumps(dict.fromkeys(disputed, "1 to 5"))
    text = (
        f"Aspect: review\nThe clip lasts {seconds:.2f} s.\n" + "\n\n".join(blocks) + "\nAnswer with one JSON object "
        f'and nothing else: {{"rationale": "two or three sentences", "scores": {wanted}}}.'
    )
    return _REVIEWER, text
