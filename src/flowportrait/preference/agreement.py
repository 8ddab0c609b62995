"""How far people who judged the same things agree: Krippendorff's alpha for nominal data.

    α = 1 − D_o / D_e        D_o = Σ_{c≠k} o_ck / n        D_e = Σ_{c≠k} n_c n_k / (n (n − 1))

``o_ck`` counts ordered pairs of values within a unit, each unit weighted by 1 / (m_u − 1) for its m_u values
(Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011). Missing judgements simply are not there. 1 is
perfect agreement, 0 is chance, below 0 is systematic disagreement.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Alpha of the values given to each unit, in any order; units with fewer than two values say nothing.

    None where no unit has two values, or where everybody always said the same one thing (no variation to explain).
    """
    together: defaultdict[tuple[Hashable, Hashable], float] = defaultdict(float)
    for values in units:
        if len(values) < 2:
            continue
        counted = Counter(values)
        for one, often in counted.items():
            for other, as_often in counted.items():
                pairs = often * (as_often - (one == other))
                together[one, other] += pairs / (len(values) - 1)
    margin: defaultdict[Hashable, float] = defaultdict(float)
    for (one, _), weight in together.items():
        margin[one] += weight
    total = sum(margin.values())
    expected = total**2 - sum(weight**2 for weight in margin.values())
    if not total or not expected:
        return None
    observed = sum(weight for (one, other), weight in together.items() if one != other)
    return 1.0 - observed * (total - 1) / expected
