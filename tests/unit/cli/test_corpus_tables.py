"""What `corpus stats` prints."""

from __future__ import annotations

import io

from rich.console import Console

from mlx_router.cli.corpus import stats_table


def test_a_narrow_terminal_cuts_no_name_and_no_figure() -> None:
    row = {"rows": 12345, "en": 12345, "fr": 12345, "other": 12345, "words q1/median/q3": "10/20/300"}
    row |= {"1-grams": 12345, "2-grams": 12345, "nearest label": "localisation-doc", "cosine": 0.351}
    out = io.StringIO()
    Console(file=out, width=80).print(stats_table("1 row", {"redaction-multilingue": row}))
    assert "…" not in out.getvalue()
