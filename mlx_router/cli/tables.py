"""Tables of figures that several commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

COLUMNS = {
    "top1": "top-1",
    "top1_lenient": "top-1\nlenient",
    "top3": "top-3",
    "top3_lenient": "top-3\nlenient",
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted-F1",
    "ece": "ECE",
}


def figures_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """One line a row of `metrics.summary` figures."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("n", justify="right")
    for name in COLUMNS.values():
        table.add_column(name, justify="right")
    for name, figures in rows.items():
        table.add_row(name, str(figures["n"]), *(f"{figures[key]:.3f}" for key in COLUMNS))
    return table
