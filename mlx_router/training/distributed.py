"""Encoding on several machines at once, under `mlx.launch`: the same embeddings, bit for bit, in the same order.

Rank 0 reads, tokenises and cuts batches exactly as one process alone would, and deals them out in rounds: batch i of a
round is computed by rank i mod size. What comes back is summed, every row having been computed by one rank and being
zero elsewhere, so nothing is rounded. The other ranks need the encoder's weights, and neither corpus nor home.

    round:  all_sum of (batches, length)     from rank 0; zero batches: the end
            all_sum of length integers       from rank 0: per batch B, T, lengths, ids
            all_sum of (rows, 384) floats    from everybody
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_router.config.environment import launched_rank
from mlx_router.encoder import batching
from mlx_router.encoder.encoder import DIM, Embeddings, Encoder

log = logging.getLogger(__name__)

BATCHES = 8  # of a round, for each rank: enough that waiting for the slowest does not show
Ints = npt.NDArray[np.int32]
Batch = tuple[Ints, Ints]  # ids (B, T), lengths (B,)


@contextlib.contextmanager
def shared(encoder: Encoder) -> Iterator[Encoder | None]:
    """The encoder to use: `encoder` itself in a process that runs alone, one on all ranks under a launcher.

    On every rank but the first the block runs after the work is done, with None: there is nothing left to do.
    """
    if launched_rank() is None:
        yield encoder
        return
    from mlx_router.compute import mx

    group = mx.distributed.init(strict=True)
    if group.size() == 1:
        yield encoder
        return
    exchange = Exchange(mx, group)
    if group.rank() != 0:
        rounds = assist(encoder, exchange)
        log.info("rank=%d rounds=%d", group.rank(), rounds)
        yield None
        return
    try:
        yield SharedEncoder(encoder, exchange)
    finally:
        exchange.say(())


class Exchange:
    """The three sums of a round, on one group of ranks."""

    def __init__(self, mx: Any, group: Any) -> None:
        self._mx = mx
        self._group = group
        self.rank: int = group.rank()
        self.size: int = group.size()

    def say(self, batches: Sequence[Batch]) -> None:
        """Rank 0: send the batches of a round; none end it."""
        payload = pack(batches)
        self._sum(np.array([len(batches), len(payload)], dtype=np.int32))
        if batches:
            self._sum(payload)

    def hear(self) -> list[Batch]:
        """The other ranks: the batches of a round; none is the end."""
        count, length = (int(value) for value in self._sum(np.zeros(2, dtype=np.int32)))
        return unpack(self._sum(np.zeros(length, dtype=np.int32)), count) if count else []

    def compute(self, encoder: Encoder, batches: Sequence[Batch]) -> Embeddings:
        """Every row of a round, (rows, 384): this rank's own batches, and what the others make of theirs."""
        rows = np.zeros((sum(len(lengths) for _, lengths in batches), DIM), dtype=np.float32)
        start = 0
        for index, (ids, lengths) in enumerate(batches):
            if index % self.size == self.rank:
                rows[start : start + len(lengths)] = encoder.runtime(ids, lengths)
            start += len(lengths)
        everything: Embeddings = self._sum(rows)
        return everything

    def _sum(self, values: Any) -> Any:
        total = self._mx.distributed.all_sum(self._mx.array(values), group=self._group, stream=self._mx.cpu)
        return np.array(total)


class SharedEncoder(Encoder):
    """Rank 0's encoder: the same files, tokenizer and batches, computed by every rank."""

    def __init__(self, encoder: Encoder, exchange: Exchange) -> None:
        super().__init__(encoder.files, encoder.runtime, encoder.batch)
        self._exchange = exchange

    def encode(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> Embeddings:
        """Embed texts: n strings -> (n, 384) float32 in input order."""
        out = np.zeros((len(texts), DIM), dtype=np.float32)
        if not texts:
            return out
        rows = self.tokenizer.encode(texts)
        indices = list(batching.by_length(rows, self.batch, self.runtime.batch_tokens))
        step = BATCHES * self._exchange.size
        for start in range(0, len(indices), step):
            chosen = indices[start : start + step]
            batches = [batching.pad([rows[i] for i in index]) for index in chosen]
            self._exchange.say(batches)
            order = np.concatenate(chosen)
            out[order] = self._exchange.compute(self, batches)
            if progress is not None:
                progress(len(order))
        return out


def assist(encoder: Encoder, exchange: Exchange) -> int:
    """Compute this rank's share until rank 0 ends it; how many rounds there were."""
    rounds = 0
    while batches := exchange.hear():
        exchange.compute(encoder, batches)
        rounds += 1
    return rounds


def pack(batches: Sequence[Batch]) -> Ints:
    """One vector of integers: per batch B, T, its lengths, its ids row by row."""
    parts: list[Ints] = []
    for ids, lengths in batches:
        parts += [np.array(ids.shape, dtype=np.int32), lengths.astype(np.int32), ids.astype(np.int32).reshape(-1)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)


def unpack(payload: Ints, count: int) -> list[Batch]:
    """The inverse of `pack`."""
    batches: list[Batch] = []
    at = 0
    for _ in range(count):
        rows, width = int(payload[at]), int(payload[at + 1])
        lengths = payload[at + 2 : at + 2 + rows]
        at += 2 + rows
        batches.append((payload[at : at + rows * width].reshape(rows, width), lengths))
        at += rows * width
    return batches
