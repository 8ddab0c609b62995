"""Ask a backend for what is not known yet.

questions ─► cache ─► known replies
              └─ the rest ─► backend ─► replies, kept as they come, and failures
"""

from __future__ import annotations

from collections.abc import Sequence

from flowportrait.judge.cache import Cache
from flowportrait.judge.opinion import Reply
from flowportrait.judge.question import Backend, Question
from flowportrait.reward.batch import Failure


def ask_for(
    questions: Sequence[Question], backend: Backend, cache: Cache
) -> tuple[dict[int, Reply], dict[int, Failure]]:
    """Replies by place, those known already and those that the backend gives now; and failures by place.

    Raises:
        BadInput: the backend cannot be used at all (key, model, address).
    """
    addresses = [question.address(backend.who) for question in questions]
    known = {place: reply for place, address in enumerate(addresses) if (reply := cache.get(address))}
    todo = [place for place in range(len(questions)) if place not in known]

    def keep(index: int, reply: Reply) -> None:
        known[todo[index]] = reply
        cache.put(addresses[todo[index]], reply)

    failures = backend.ask([questions[place] for place in todo], keep)
    return known, {todo[index]: failure for index, failure in failures.items()}
