"""80/10/10, stratified by primary label, never separating near-duplicates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlx_router.errors import CorpusError
from mlx_router.training.corpus import Row

SEED = 42
MIN_ROWS = 10  # per label: one row in each of validation and test, and something to learn from


@dataclass(frozen=True)
class Split:
    """Row indices of each part, ascending."""

    train: npt.NDArray[np.intp]
    valid: npt.NDArray[np.intp]
    test: npt.NDArray[np.intp]


def check_sizes(rows: Sequence[Row], labels: Sequence[str]) -> None:
    """Raise CorpusError naming every label with too few rows, or where there is only one label."""
    if len(labels) < 2:
        raise CorpusError(f"a router needs two labels to choose between, the corpus has only {labels[0]}")
    counts = Counter(row.label for row in rows)
    few = [f"{label}: {counts[label]} rows, at least {MIN_ROWS} needed" for label in labels if counts[label] < MIN_ROWS]
    if few:
        raise CorpusError.from_problems("too few rows to train, validate and test on", few)


def split_rows(rows: Sequence[Row], group: npt.NDArray[np.intp], seed: int = SEED) -> Split:
    """Deal whole groups of near-duplicates, label by label, largest shortfall first."""
    rng = np.random.default_rng(seed)
    members: dict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(group):
        members[int(number)].append(index)
    by_label: dict[str, list[list[int]]] = defaultdict(list)
    for indices in members.values():
        by_label[rows[indices[0]].label].append(indices)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for label in sorted(by_label):
        bundles = by_label[label]
        total = sum(map(len, bundles))
        wanted = np.array([0.8, 0.1, 0.1]) * total
        filled = np.zeros(3)
        for position in rng.permutation(len(bundles)):
            bundle = bundles[position]
            part = int(np.argmax((wanted - filled) / wanted)) if len(bundle) == 1 else 0
            parts[part].extend(bundle)
            filled[part] += len(bundle)
    train, valid, test = (np.array(sorted(part), dtype=np.intp) for part in parts)
    return Split(train, valid, test)
