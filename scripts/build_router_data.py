"""Normalise the corpus, drop repeats, split it 80/10/10: train.jsonl, valid.jsonl, test.jsonl."""

from __future__ import annotations

from pathlib import Path

import click

from mlx_router import resources
from mlx_router.cli.progress import RichProgress
from mlx_router.config import home_dir
from mlx_router.encoder.encoder import load_encoder
from mlx_router.encoder.weights import find_encoder
from mlx_router.errors import RouterError
from mlx_router.training.corpus import read_corpus
from mlx_router.training.dataset import build_dataset
from mlx_router.training.embeddings import EmbeddingCache
from mlx_router.training.split import SEED
from mlx_router.training.splits import write_splits


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Corpus folder (default: shipped).")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Default: $MLX_ROUTER_HOME/splits.")
@click.option("--seed", type=click.IntRange(0), default=SEED, show_default=True)
def main(data: Path | None, out: Path | None, seed: int) -> None:
    """Near-duplicates are found by meaning, hence the encoder."""
    home = home_dir()
    folder = out or home / "splits"
    try:
        corpus = read_corpus(data or resources.corpus_dir())
        encoder = load_encoder(find_encoder(), cache=home / "cache" / "onnx")
        with RichProgress() as progress:
            bar = progress.encoding(len(corpus.rows))
            cache = EmbeddingCache(home / "cache" / "embeddings", encoder)
            dataset = build_dataset(corpus, cache, seed=seed, fallback="general", progress=bar)
        sizes = write_splits(dataset, folder)
    except RouterError as error:
        raise click.ClickException(error.message) from error
    click.echo(f"{folder}: " + ", ".join(f"{name} {count}" for name, count in sizes.items()))


if __name__ == "__main__":
    main()
