"""What a run shows while it runs: place and time left, every reward apart, the guard-rails, and findings in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from flowportrait.posttrain.doctor import Finding

GUARDS = ("ratio/mean", "ratio/std", "clip/positive", "clip/negative", "delta_v", "kl", "dead_groups", "grad_norm",
          "noise_gap")  # fmt: skip


def board(record: Mapping[str, float], iterations: int, seconds_left: float, findings: Sequence[Finding]) -> Group:
    """Everything for the terminal."""
    title = f"iteration {record['iteration']:.0f}/{iterations} · {seconds_left / 60:.1f} min left"
    table = Table(title=title, title_justify="left")
    for column in ("reward", "mean", "spread in groups", "share"):
        table.add_column(column, justify="left" if column == "reward" else "right")
    for key, value in record.items():
        if key.startswith("reward/"):
            name = key.removeprefix("reward/")
            spread, share = record[f"spread/{name}"], record.get(f"share/{name}", 0.0)
            table.add_row(name, f"{value:.4f}", f"{spread:.4f}", f"{share:.0%}")
    for key in GUARDS:
        if key in record:
            table.add_row(f"[dim]{key}", f"[dim]{record[key]:.4g}", "", "")
    for key, value in record.items():
        if key.startswith("evaluation/"):
            table.add_row(f"[cyan]{key}", f"[cyan]{value:.4f}", "", "")
    said = [Text(f"{finding.kind}: {finding.seen}", style="yellow") for finding in findings]
    return Group(table, *said)
