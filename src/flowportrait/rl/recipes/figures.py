"""The figure to expect of every recipe that was measured, and the command that gave it.

Figures are those of ``reports/2026-11-30-recipes.md``: forty processor seconds of one core from ``sft``, three seeds,
what the weighted sum of the rewards gained on held-out prompts, in standard deviations of the start. A test compares
them with the report.
"""

from __future__ import annotations

REPORT = "reports/2026-11-30-recipes.md"
COMMAND = (
    "python -m benchmarks recipes --corpus CORPUS --data FOOTAGE --prompts DIR --held-out DIR2 --output RUNS "
    "--seconds 40 --seeds 0 1 2 --stage train --only"
)
EXPECTED = {
    "kvpo": "+0.107 (+0.033 … +0.189)",
    "exemplar-awm": "+0.102 (-0.017 … +0.217)",
    "awm": "+0.098 (+0.009 … +0.196)",
    "gspo": "+0.088 (+0.026 … +0.147)",
    "flash-grpo": "+0.088 (+0.025 … +0.152)",
    "nft": "+0.078 (-0.004 … +0.169)",
    "region-credit": "+0.076 (+0.037 … +0.109)",
    "mix-grpo": "+0.075 (+0.004 … +0.153)",
    "guard": "+0.072 (+0.020 … +0.134)",
    "tempflow": "+0.070 (-0.017 … +0.162)",
    "dppo": "+0.059 (+0.018 … +0.112)",
    "step-credit": "+0.058 (+0.023 … +0.101)",
    "pref-grpo": "+0.057 (+0.015 … +0.109)",
    "flow-grpo": "+0.056 (+0.019 … +0.098)",
    "dance-grpo": "+0.033 (-0.031 … +0.107)",
    "longcat-grpo": "+0.033 (-0.053 … +0.106)",
    "solace": "+0.031 (-0.065 … +0.134)",
    "branch-grpo": "+0.029 (-0.029 … +0.076)",
    "cps": "+0.027 (-0.017 … +0.062)",
    "nft-regions": "+0.026 (-0.078 … +0.120)",
    "exemplar-ratio": "-0.031 (-0.096 … +0.030)",
    "flow-rwr": "-0.400 (-0.649 … -0.160)",
}
"""Recipe → gain of the composite on held-out prompts, with its 95 % interval."""
CONTROLS = {"ratio": "+0.023 (-0.020 … +0.066)", "matching": "+0.064 (-0.003 … +0.140)"}
"""The same of random rewards, by ``flow-grpo`` for methods with a likelihood ratio and by ``nft`` for the others."""
_MATCHING = frozenset({"nft", "nft-regions", "awm", "exemplar-awm", "flow-rwr", "solace"})
_CHANGED = frozenset({
    "awm", "branch-grpo", "exemplar-ratio", "kvpo", "longcat-grpo", "mix-grpo", "pref-grpo", "region-credit",
    "step-credit", "tempflow",
})  # fmt: skip
"""Recipes that have changed since."""
_ELSEWHERE = {
    "dmd": "reports/2026-12-01-distribution-matching.md", "dmd-reward": "reports/2026-12-01-distribution-matching.md",
    "dmd-tilted": "reports/2026-12-01-distribution-matching.md",
    "dmd-trust": "reports/2026-12-01-distribution-matching.md",
    "rollout-gradient": "reports/2026-12-01-distribution-matching.md",
    "corrective-reflow": "reports/2026-12-01-distribution-matching.md",
    "direct": "reports/2026-12-01-post-training.md", "distil": "reports/2026-11-30-few-steps.md",
    "flow-dpo": "reports/2026-11-30-preferences.md",
}  # fmt: skip
"""Reports with the figures and commands of recipes that the comparison does not contain."""


def expected_figure(name: str) -> str:
    """Return what to expect of a recipe, beside the random-reward control, and how it was measured."""
    if name in _ELSEWHERE:
        return f"figures and commands in {_ELSEWHERE[name]}"
    if name not in EXPECTED:
        return "not measured on held-out prompts; posttrain --held-out measures it"
    command = "compared before it asked a judge" if name == "pref-grpo" else f"{COMMAND} {name}"
    control = CONTROLS["matching" if name in _MATCHING else "ratio"]
    since = ", before the recipe was changed" if name in _CHANGED else ""
    return (
        f"{EXPECTED[name]} standard deviations of the rewards on held-out prompts after 40 processor seconds, three "
        f"seeds; random rewards {control} (version 0.1{since}; {REPORT}): {command}"
    )
