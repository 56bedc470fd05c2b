"""From corpus rows to arrays: embedded, grouped, split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_router.errors import CorpusError
from mlx_router.training.corpus import Corpus, Row
from mlx_router.training.embeddings import EmbeddingCache
from mlx_router.training.fit import Example, row_weights
from mlx_router.training.metrics import Truth
from mlx_router.training.similarity import groups, near_duplicates
from mlx_router.training.split import Split, check_sizes, split_rows


@dataclass(frozen=True)
class Dataset:
    """Every row of a corpus with its embedding; outside rows have no label and index -1 as primary."""

    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    x: npt.NDArray[np.float32]  # (n, 384)
    y: npt.NDArray[np.float32]  # (n, C); outside rows point at the fallback label where there is one
    split: Split
    leaks: int  # near-duplicate pairs that stand in two parts

    def example(self, index: npt.NDArray[np.intp]) -> Example:
        """Arrays of one part for the trainer."""
        return Example(self.x[index], self.y[index], row_weights(self._primary(index), len(self.labels)))

    def inside(self, index: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Of `index`, the rows that have a label."""
        return index[[bool(self.rows[i].labels) for i in index]]

    def outside(self, index: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Of `index`, the rows that have none."""
        return index[[not self.rows[i].labels for i in index]]

    def truth(self, index: npt.NDArray[np.intp]) -> Truth:
        """Right answers of labelled rows."""
        rows = [self.rows[i] for i in index]
        return Truth.build([row.labels for row in rows], [row.lang for row in rows], self.labels)

    def texts(self, index: npt.NDArray[np.intp]) -> list[str]:
        """Texts of one part."""
        return [self.rows[i].text for i in index]

    def counts(self) -> dict[str, Any]:
        """Rows per part, label and language, for the provenance record."""
        per_label: dict[str, dict[str, int]] = {}
        for row in self.rows:
            langs = per_label.setdefault(row.label, {})
            langs[row.lang] = langs.get(row.lang, 0) + 1
        return {
            "rows": len(self.rows),
            "train": len(self.split.train),
            "valid": len(self.split.valid),
            "test": len(self.split.test),
            "per_label_and_language": per_label,
        }

    def _primary(self, index: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        positions = {label: position for position, label in enumerate(self.labels)}
        return np.array([positions.get(self.rows[i].label, -1) for i in index], dtype=np.intp)


def unique_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The first row of each text."""
    return tuple({row.text: row for row in reversed(rows)}.values())[::-1]


def build_dataset(
    corpus: Corpus,
    cache: EmbeddingCache,
    *,
    seed: int,
    fallback: str,
    progress: Callable[[int], None] | None = None,
) -> Dataset:
    """Embed, group near-duplicates and split. Raises CorpusError where a label has too few rows."""
    rows = unique_rows(corpus.rows)
    check_sizes(rows, corpus.labels)
    texts = [row.text for row in rows]
    x = cache.embed(texts, progress)
    pairs = near_duplicates(texts, x)
    split = split_rows(rows, groups(len(rows), pairs), seed)
    _check_parts(rows, split)
    part = np.zeros(len(rows), dtype=np.int8)
    part[split.valid], part[split.test] = 1, 2
    leaks = sum(part[i] != part[j] for i, j, _, _ in pairs)
    positions = {label: position for position, label in enumerate(corpus.labels)}
    y = np.zeros((len(rows), len(corpus.labels)), dtype=np.float32)
    for index, row in enumerate(rows):
        wanted = row.labels or (fallback,)
        y[index, [positions[label] for label in wanted if label in positions]] = 1.0
    return Dataset(rows, corpus.labels, x, y, split, int(leaks))


def _check_parts(rows: Sequence[Row], split: Split) -> None:
    """Raise CorpusError where nothing is left to choose or to measure on."""
    empty = [
        name
        for name, index in (("validation", split.valid), ("test", split.test))
        if not any(rows[i].labels for i in index)
    ]
    if empty:
        raise CorpusError(
            f"the {' and '.join(empty)} part would be empty: near-duplicates stay together, and too few rows differ"
        )
