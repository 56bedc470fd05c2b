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


def by_length(rows: Sequence[npt.NDArray[np.int32]], size: int = BATCH) -> Iterator[npt.NDArray[np.intp]]:
    """Indices of each batch; rows of one batch have neighbouring lengths."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]
