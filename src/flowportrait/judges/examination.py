"""This module examines a judge in one go: known damage, preferences, repetition and cost.

    damage        certify_judge: are grades lower, the stronger the damage?                     chance 50 % of pairs
    preferences   measure_agreement: is the clip preferred that people preferred?               chance 50 %
    repetition    the same items again: sd² = mean over items of the variance over rounds       chance ICC 0
    cost          tokens, requests, seconds and dollars of the rounds of the repetition, each all items and aspects

A model's cached replies are not counted as repetitions: every round asks for other samples (``Panel.retest``). What a
cached reply cost is read from the ledger, so that an interrupted examination reports the same cost as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.judges.calibration import intraclass_correlation
from flowportrait.judges.learning import Agreement
from flowportrait.judges.questions import Ledger, ReplyCache
from flowportrait.judges.sanity import Certificate, Item, SanitySet, certify_judge
from flowportrait.judges.verdicts import ItemJudge, Verdict
from flowportrait.terminal import progress


@dataclass(frozen=True)
class Repetition:
    """How far a judge repeats itself on one aspect, or overall.

    Args:
        aspect: the aspect, or ``overall``.
        rounds: number of times that every item was judged.
        items: number of items with a score in every round.
        sd: standard deviation of the score of one item over rounds, in grades; None without items.
        icc: ICC(2,1) of the rounds: the share of the variance that is between items; None with fewer than two items.
    """

    aspect: str
    rounds: int
    items: int
    sd: float | None
    icc: float | None


@dataclass(frozen=True)
class JudgeCost:
    """What judging one item in all aspects costs.

    Args:
        items: number of judged items that were counted.
        requests: requests per item; 0 for a judge that asks no server.
        answered: share of the requests with a usable answer; None without requests.
        tokens_in: input tokens per item, as the server reported them.
        tokens_out: output tokens per item, likewise.
        untold: share of the requests of which the server reported no tokens; None without requests.
        seconds: time per item, with the requests of several items at the same time; None if replies were cached.
        request_seconds: sum of the durations of the requests per item; None without requests.
        dollars_per_1000: price of 1000 items; None if the settings give no price.
    """

    items: int
    requests: float = 0.0
    answered: float | None = None
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    untold: float | None = None
    seconds: float | None = None
    request_seconds: float | None = None
    dollars_per_1000: float | None = None


@dataclass(frozen=True)
class Examination:
    """The results of an examination.

    Args:
        certificate: the results on known damage.
        repetitions: how far the judge repeats itself, by aspect and overall; empty if it was not asked again.
        cost: the cost of an item; None if the judge was not asked again.
        agreement: the agreement with preferences; None without pairs.
    """

    certificate: Certificate
    repetitions: tuple[Repetition, ...] = ()
    cost: JudgeCost | None = None
    agreement: Agreement | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without those that were not measured."""
        found: dict[str, Any] = self.certificate.to_dict()
        if self.agreement is not None:
            found["agreement"] = self.agreement.to_dict()
        if self.repetitions:
            found["repetition"] = [asdict(one) for one in self.repetitions]
        if self.cost is not None:
            found["cost"] = asdict(self.cost)
        return found

    def to_lines(self, what: str) -> dict[str, str]:
        """Return one sentence for each part, by its title; ``what`` is a word for the items."""
        lines = {
            f"{result.aspect} / {result.damage}": " → ".join(f"{mean:.2f}" for mean in result.means)
            + f"  order {result.order:.0%}{'' if result.passed else '  FAILED'}"
            for result in self.certificate.results
        }
        if self.agreement is not None:
            low, high = self.agreement.interval
            lines["agreement with preferences"] = (
                f"{self.agreement.accuracy:.0%} ({low:.0%}–{high:.0%}) of {self.agreement.decided}, no opinion on "
                f"{self.agreement.no_opinion:.0%}; chance is 50 %"
            )
        for one in self.repetitions:
            sd = "no item has a score in every round" if one.sd is None else f"± {one.sd:.2f} grades"
            icc = "" if one.icc is None else f", ICC {one.icc:.2f}"
            lines[f"asked again / {one.aspect}"] = f"{sd}{icc} ({one.items} {what}, {one.rounds} rounds)"
        if self.cost is not None:
            lines[f"cost / 1000 {what}"] = _cost_sentence(self.cost)
        return lines


def examine_judge(judge: ItemJudge[Item], items: Sequence[Item], by: SanitySet[Item], rounds: int = 2) -> Examination:
    """Let a judge grade damaged items, and then the intact ones ``rounds`` times.

    The agreement with preferences is not measured here, because only clips have it.

    Args:
        judge: the judge.
        items: real clips or pictures.
        by: the sanity set.
        rounds: number of times that the intact items are judged; 0 measures neither repetition nor cost.

    Raises:
        BadInput: there are too few items, one cannot be used, or ``rounds`` is 1 or negative.
    """
    if rounds < 0 or rounds == 1:
        raise BadInput(f"{rounds} rounds show no repetition: ask at least twice, or 0 times.")
    certificate = certify_judge(judge, items, by)
    if not rounds:
        return Examination(certificate)
    bill = _Bill(judge)
    seconds, verdicts = 0.0, []
    for number in progress(range(rounds), rounds, "judging again"):
        unseen = [_without_measurements(item) for item in items]
        began = time.monotonic()
        verdicts.append(repeated_judge(judge, number).judge(unseen))
        seconds += time.monotonic() - began
    return Examination(certificate, _repetitions(verdicts, list(by.cases)), bill.cost(rounds * len(items), seconds))


def _without_measurements(item: Item) -> Item:
    """Return a copy of an item without what is measured of it only once, such as the places of its face."""
    return replace(item) if is_dataclass(item) and not isinstance(item, type) else item


def repeated_judge(judge: ItemJudge[Item], number: int) -> ItemJudge[Item]:
    """Return the judge for the ``number``-th repetition: a panel asks for other samples, other judges are the same."""
    retest = getattr(judge, "retest", None)
    return judge if retest is None else retest(number)


def _repetitions(rounds: Sequence[Sequence[Verdict]], aspects: Sequence[str]) -> tuple[Repetition, ...]:
    found = []
    for aspect in (*aspects, "overall"):
        scores = np.array([[_score(verdict, aspect) for verdict in own] for own in rounds], float).T  # [items, rounds]
        if aspect == "overall" and not np.isfinite(scores).any():
            continue  # stills have no overall score
        valid = scores[np.isfinite(scores).all(1)]
        sd = float(np.sqrt(valid.var(1, ddof=1).mean())) if len(valid) else None
        icc = intraclass_correlation(valid) if len(valid) > 1 else None
        found.append(Repetition(aspect, len(rounds), len(valid), sd, icc))
    return tuple(found)


def _score(verdict: Verdict, aspect: str) -> float | None:
    return verdict.overall if aspect == "overall" else verdict.aspects[aspect].score


class _Bill:
    """The questions and requests of a judge from now on; a judge without a ledger has none."""

    def __init__(self, judge: ItemJudge[Any]) -> None:
        backend = getattr(judge, "backend", None)
        self._ledger: Ledger | None = getattr(backend, "ledger", None)
        self._cache: ReplyCache | None = getattr(judge, "cache", None)
        self._endpoint = getattr(backend, "endpoint", None)
        self._questions = len(self._cache.looked_up) if self._cache else 0
        self._entries = len(self._ledger.entries) if self._ledger else 0

    def cost(self, items: int, seconds: float) -> JudgeCost:
        """Return the cost of ``items`` items that were judged since then, in ``seconds``."""
        if self._ledger is None or self._cache is None:
            return JudgeCost(items, seconds=seconds / items)
        addresses = set(self._cache.looked_up[self._questions :])
        asked_now = {entry.address for entry in self._ledger.entries[self._entries :]}
        spent = self._ledger.totals(addresses=addresses)
        requests = spent["requests"]
        end = self._endpoint
        price = (end.dollars_in, end.dollars_out) if end is not None else (0.0, 0.0)
        dollars = (spent["tokens_in"] * price[0] + spent["tokens_out"] * price[1]) / 1e6
        return JudgeCost(
            items,
            requests / items,
            spent["outcomes"].get("answered", 0) / requests if requests else None,
            spent["tokens_in"] / items,
            spent["tokens_out"] / items,
            spent["untold"] / requests if requests else None,
            seconds / items if asked_now == addresses else None,
            spent["seconds"] / items if requests else None,
            1000 * dollars / items if any(price) else None,
        )


def _cost_sentence(cost: JudgeCost) -> str:
    """Return the cost of 1000 items as a sentence."""
    parts = []
    if cost.requests:
        parts.append(
            f"{1000 * cost.tokens_in:,.0f} tokens in, {1000 * cost.tokens_out:,.0f} out, {1000 * cost.requests:,.0f} "
            f"requests ({cost.answered:.0%} with a usable answer)"
        )
        if cost.untold:
            parts.append(f"tokens of {cost.untold:.0%} of the requests are unknown")
    if cost.seconds is not None:
        parts.append(f"{1000 * cost.seconds:,.0f} s")
    elif cost.request_seconds is not None:
        parts.append(f"{1000 * cost.request_seconds:,.0f} s of requests, one after the other")
    if cost.dollars_per_1000 is not None:
        parts.append(f"${cost.dollars_per_1000:,.2f}")
    elif cost.requests:
        parts.append("no price: set endpoint.dollars_in and endpoint.dollars_out")
    return "; ".join(parts)
