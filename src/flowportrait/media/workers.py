"""Threads that work on items ahead of whoever takes the results, which keep their order.

    items  1 2 3 4 5 6 …      taken 1 │ under way 2 3 4 │ not asked for yet 5 6 …

Drawing, scaling and marking pictures runs outside Python's lock, so threads use all cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Result]:
    """Yield ``work(item)`` for each of ``items``, at most ``ahead`` of them under way in ``workers`` threads; with
    fewer than two, one after the other in the caller's.

    ``items`` are asked for in the caller's thread. What ``work`` raises is raised where its result is taken.
    """
    if workers < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[Future[Result]] = deque()
        try:
            for item in items:
                if len(under_way) == ahead:
                    yield under_way.popleft().result()
                under_way.append(pool.submit(work, item))
            while under_way:
                yield under_way.popleft().result()
        finally:
            # Nobody waits for pictures that are not wanted any more.
            for left in under_way:
                left.cancel()
