"""Who looked: answers of participants who fail the checks do not count.

left out:  prefers a ruined video, or calls it the same, overall
           prefers one of two identical videos, overall, in more than half of those seen
           stopped before any ruined video was shown (nobody knows whether they looked)
"""

from __future__ import annotations

from flowportrait.study.plan import Study
from flowportrait.study.store import Answers

ASKED = "overall"


def why_left_out(study: Study, answers: Answers) -> str:
    """The reason, or nothing for a participant whose answers count."""
    labels = {"broken": [], "identical": []}  # type: dict[str, list[str]]
    for check in study.checks:
        if ASKED in (said := answers.get(check.key, {})):
            labels[check.kind].append(said[ASKED])
    if any(label != "A" for label in labels["broken"]):
        return "did not prefer the intact video to a ruined one"
    if 2 * sum(label != "tie" for label in labels["identical"]) > max(1, len(labels["identical"])):
        return "preferred one of two identical videos"
    if not labels["broken"] and any(check.kind == "broken" for check in study.checks):
        return "stopped before the first attention check"
    return ""
