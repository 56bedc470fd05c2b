"""Batches and loss for training on a CPU, in the form that mlx-lm's trainer takes them.

mlx-lm's own pad rows to a multiple of 32 and take the loss over every position, which suits a compiled graph on a GPU.
On a CPU nothing is compiled, padding costs what text costs, and the exponentials of a loss are the slowest part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlx_router.compute import mx, nn

Batch = tuple[mx.array, mx.array, mx.array]  # tokens (B, T), learned places in B * T (P,), what follows them (P,)


def iterate_batches(
    dataset: Sequence[tuple[list[int], int]],
    batch_size: int,
    max_seq_length: int,
    loop: bool = False,
    seed: int | None = None,
    comm_group: Any = None,
) -> Iterator[Batch]:
    """Rows of similar length together, every row in every pass, in an order drawn from numpy's global generator."""
    order = sorted(range(len(dataset)), key=lambda index: len(dataset[index][0]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    while True:
        for place in np.random.permutation(len(batches)):
            yield _batch([dataset[index] for index in batches[place]], max_seq_length)
        if not loop:
            return


def _batch(rows: Sequence[tuple[list[int], int]], limit: int) -> Batch:
    width = max(min(len(tokens), limit) for tokens, _ in rows) - 1
    inputs = np.zeros((len(rows), width), np.int32)
    places: list[int] = []
    targets: list[int] = []
    for number, (tokens, start) in enumerate(rows):
        kept = tokens[:limit]
        inputs[number, : len(kept) - 1] = kept[:-1]
        places += range(number * width + start - 1, number * width + len(kept) - 1)
        targets += kept[start:]
    return mx.array(inputs), mx.array(np.array(places, np.int32)), mx.array(np.array(targets, np.int32))


def answer_loss(model: Any, inputs: mx.array, places: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Mean loss over the answers' tokens, and how many there are."""
    logits = model(inputs)
    chosen = mx.take(logits.reshape(-1, logits.shape[-1]), places, axis=0).astype(mx.float32)
    return nn.losses.cross_entropy(chosen, targets, reduction="mean"), mx.array(targets.size)
