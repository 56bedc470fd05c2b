"""Tables of figures in a terminal of 80 columns."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mlx_router.cli.adapter_tables import record_table
from mlx_router.cli.corpus import stats_table
from mlx_router.cli.tables import COLUMNS, figures_table
from mlx_router.lora.registry import Registry


def printed(table: Table) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    return out.getvalue()


def test_corpus_stats_cut_no_name_and_no_figure() -> None:
    row = {"rows": 12345, "en": 12345, "fr": 12345, "other": 12345, "words q1/median/q3": "10/20/300"}
    row |= {"1-grams": 12345, "2-grams": 12345, "nearest label": "localisation-doc", "cosine": 0.351}
    assert "…" not in printed(stats_table("1 row", {"redaction-multilingue": row}))


def test_figures_of_an_evaluation_are_named_in_full() -> None:
    shown = printed(figures_table("Test rows", {"mixed": {"n": 12345, **dict.fromkeys(COLUMNS, 0.5)}}))
    assert "…" not in shown
    assert "weighted-F1" in shown


def test_an_adapter_is_shown_with_its_whole_digest(tmp_path: Path) -> None:
    digest = f"sha256:{'0123456789abcdef' * 4}"
    live = {"specialist": "hardware", "state": "resident", "requests": 1, "digest": digest}
    shown = printed(record_table(Registry(tmp_path).find("mascarade-kicad"), [live]))
    assert "…" not in shown
    assert "resident, 1 request, sha256:" in " ".join(shown.replace("│", " ").split())
