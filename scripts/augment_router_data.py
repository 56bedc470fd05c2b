"""Add hand-written rows to the corpus: confusable pairs, French and English in one prompt, whatever it lacks."""

from __future__ import annotations

from pathlib import Path

import click

from mlx_router import resources
from mlx_router.errors import RouterError
from mlx_router.training.additions import add_rows


@click.command(help=__doc__)
@click.argument("additions", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Corpus folder (default: shipped).")
def main(additions: Path, data: Path | None) -> None:
    """ADDITIONS holds rows {"text", "labels", "lang", "origin"}; all are added or none is."""
    try:
        added = add_rows(additions, data or resources.corpus_dir())
    except RouterError as error:
        raise click.ClickException(error.message) from error
    click.echo(", ".join(f"{label} +{count}" for label, count in sorted(added.items())) or "nothing new")


if __name__ == "__main__":
    main()
