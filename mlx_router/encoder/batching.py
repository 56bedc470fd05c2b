"""Batches of similar length: padding costs as much as text, so texts are sorted before they are cut into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

BATCH = 32  # measured: beats 128, whose padding costs more than it saves


def pad(rows: Sequence[npt.NDArray[np.int32]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Right-pad rows of token ids with 0: -> ids (B, T) int32, lengths (B,) int32."""
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int32)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return ids, lengths


def by_length(
    rows: Sequence[npt.NDArray[np.int32]], size: int = BATCH, tokens: int | None = None
) -> Iterator[npt.NDArray[np.intp]]:
    """Indices of each batch; rows of one batch have neighbouring lengths.

    Args:
        size: rows of a batch at most.
        tokens: of a padded batch at most, where one row alone is not longer; bounds the activations' memory.
    """
    order = np.argsort([len(row) for row in rows], kind="stable")
    start = 0
    while start < len(order):
        stop = min(start + size, len(order))
        while tokens is not None and stop - start > 1 and (stop - start) * len(rows[order[stop - 1]]) > tokens:
            stop -= 1
        yield order[start:stop]
        start = stop
