"""`mlx-router corpus …`: is the corpus fit to learn from, and what is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_router.cli.context import current_config, echo_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.table import Table

    from mlx_router.training.corpus import Corpus, Row

DATA = click.option(
    "--data", "data", metavar="DIR", help="Folder of <label>.jsonl files (default: the shipped corpus)."
)


@click.group()
def corpus() -> None:
    """Check and describe the training corpus."""


@corpus.command()
@DATA
@click.option("--fast", is_flag=True, help="Skip the comparison of meanings, which needs the encoder.")
@click.option(
    "--apart",
    "files",
    metavar="FILE",
    multiple=True,
    help="Evaluation file that no row may resemble (default: eval/*.jsonl beside the corpus).",
)
@click.pass_context
def check(ctx: click.Context, data: str | None, fast: bool, files: tuple[str, ...]) -> None:
    """Refuse duplicates, leaks, mojibake, wrong tags, personal data and templates, with file and line."""
    from mlx_router.errors import CorpusError
    from mlx_router.training.checks import check_rows
    from mlx_router.training.evaluate import eval_rows

    found = _read(data)
    beside = found.files[0].parent.parent / "eval"
    paths = [Path(file).expanduser() for file in files] or sorted(beside.glob("*.jsonl"))
    apart = [row for path in paths for row in eval_rows(path)]
    problems = check_rows(found.rows, None if fast else _embed(ctx, [*found.rows, *apart]), apart)
    if problems:
        raise CorpusError.from_problems("the corpus is not fit to learn from", problems)
    click.echo(f"{len(found.rows)} rows, {len(found.labels)} labels, {len(apart)} prompts kept apart: no problem found")


@corpus.command()
@DATA
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.pass_context
def stats(ctx: click.Context, data: str | None, as_json: bool) -> None:
    """Show rows, languages, lengths, vocabulary and nearest neighbour of each label."""
    from mlx_router.training.stats import label_stats

    found = _read(data)
    figures = label_stats(found, _embed(ctx, found.rows))
    if as_json:
        echo_json(figures)
        return
    from rich.console import Console

    Console(highlight=False).print(stats_table(f"{len(found.rows)} rows", figures))


def stats_table(title: str, figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """One line a label; a narrow terminal folds names and cuts nothing."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    columns = ("rows", "en", "fr", "other", "words q1/median/q3", "1-grams", "2-grams", "nearest label", "cosine")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("label", overflow="fold")
    for column in columns:
        table.add_column(column, justify="left" if column == "nearest label" else "right", overflow="fold")
    for label, row in figures.items():
        table.add_row(label, *(str(row[column]) for column in columns))
    return table


def _read(data: str | None) -> Corpus:
    from mlx_router.cli.options import corpus_folder
    from mlx_router.training.corpus import read_corpus

    return read_corpus(corpus_folder(data))


def _embed(ctx: click.Context, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
    from mlx_router.cli.options import open_encoder
    from mlx_router.cli.progress import RichProgress
    from mlx_router.training.embeddings import EmbeddingCache

    config = current_config(ctx)
    encoder = open_encoder(config)
    with RichProgress() as progress:
        cache = EmbeddingCache(config.home / "cache" / "embeddings", encoder)
        return cache.embed([row.text for row in rows], progress.encoding(len(rows)))
