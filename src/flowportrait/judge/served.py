"""Which rewards can be offered over HTTP, and in which form."""

from __future__ import annotations

from collections.abc import Sequence

from flowportrait.errors import BadInput
from flowportrait.reward.interface import Reward
from flowportrait.reward.registry import REWARDS, build, known
from flowportrait.reward.transport import TRAVELS
from flowportrait.terminal import say


def servable(names: Sequence[str]) -> dict[str, Reward]:
    """The rewards of those names; without names every one whose needs can travel and that can be loaded here.

    Raises:
        BadInput: no such reward, or a named one cannot be served.
    """
    known(names)
    offered: dict[str, Reward] = {}
    for name in names or [name for name in REWARDS if name != "panel"]:
        try:
            reward = build(name)
        except BadInput as error:
            if names:
                raise
            say(f"{name} is not offered: {error}")
            continue
        left = reward.needs - TRAVELS
        if left and names:
            raise BadInput(
                f"The reward {name!r} needs {', '.join(sorted(left))}, which does not travel: use it in process."
            )
        if not left:
            offered[name] = reward
    return offered
