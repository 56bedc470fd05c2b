"""Rounds of batches among ranks: threads stand for machines, and a sum for the ring."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_router.encoder.encoder import DIM, Encoder
from mlx_router.encoder.weights import find_encoder
from mlx_router.training.distributed import Exchange, SharedEncoder, assist, pack, shared, unpack


class Ring:
    """all_sum among threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=20)

    def sum(self, rank: int, values: Any) -> Any:
        self.values[rank] = values
        self.barrier.wait()
        total = np.sum(np.stack(self.values), axis=0, dtype=self.values[0].dtype)
        self.barrier.wait()
        return total


class Local(Exchange):
    """An exchange without mlx."""

    def __init__(self, ring: Ring, rank: int) -> None:
        self.ring, self.rank, self.size = ring, rank, ring.size

    def _sum(self, values: Any) -> Any:
        return self.ring.sum(self.rank, np.array(values))


class Runtime:
    """A row's vector depends on its whole batch, as padding makes it with a real one."""

    name = "fake"
    batch_tokens = 8192

    def __init__(self) -> None:
        self.batches = 0

    def __call__(self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        self.batches += 1
        rows = ids.sum(axis=1) * 0.37 + lengths + ids.shape[1] * 0.11
        return np.repeat(rows[:, None], DIM, axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def make() -> Callable[[], Encoder]:
    files = find_encoder()
    return lambda: Encoder(files, Runtime(), batch=3)


def spread(make: Callable[[], Encoder], size: int, work: Callable[[Encoder], Any]) -> tuple[Any, list[int]]:
    """Run `work` on rank 0 of a ring: its result, and the batches that each rank computed."""
    ring = Ring(size)
    encoders = [make() for _ in range(size)]
    helpers = [
        threading.Thread(target=assist, args=(encoder, Local(ring, rank)))
        for rank, encoder in enumerate(encoders)
        if rank
    ]
    for helper in helpers:
        helper.start()
    exchange = Local(ring, 0)
    try:
        result = work(SharedEncoder(encoders[0], exchange))
    finally:
        exchange.say(())
        for helper in helpers:
            helper.join(20)
    return result, [encoder.runtime.batches for encoder in encoders]  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_together_give_what_one_gives_alone_bit_for_bit(make: Callable[[], Encoder], size: int) -> None:
    texts = [("word " * (number * 7 % 23)) + str(number) for number in range(200)]
    alone = make().encode(texts)
    seen: list[int] = []
    together, batches = spread(make, size, lambda encoder: encoder.encode(texts, seen.append))
    assert alone.tobytes() == together.tobytes()
    assert sum(seen) == 200
    assert sum(batches) == 67  # 200 texts, three a batch
    assert max(batches) - min(batches) <= 8  # within the last round


def test_several_calls_and_none(make: Callable[[], Encoder]) -> None:
    def work(encoder: Encoder) -> Sequence[npt.NDArray[np.float32]]:
        return [encoder.encode(["a", "b"]), encoder.encode([]), encoder.encode(["c"])]

    (first, second, third), _ = spread(make, 2, work)
    assert first.tobytes() == make().encode(["a", "b"]).tobytes()
    assert (second.shape, third.shape) == ((0, DIM), (1, DIM))


def test_a_failure_on_rank_0_lets_the_others_go(make: Callable[[], Encoder]) -> None:
    def work(encoder: Encoder) -> None:
        encoder.encode(["a"])
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk"):
        spread(make, 2, work)


def test_alone_nothing_is_shared(make: Callable[[], Encoder], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    encoder = make()
    with shared(encoder) as common:
        assert common is encoder


@given(
    st.lists(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6), min_size=1, max_size=4), max_size=5)
)
def test_batches_survive_the_journey(batches: list[list[list[int]]]) -> None:
    arrays = []
    for rows in batches:
        width = max(len(row) for row in rows)
        ids = np.array([row + [0] * (width - len(row)) for row in rows], dtype=np.int32)
        arrays.append((ids, np.array([len(row) for row in rows], dtype=np.int32)))
    found = unpack(pack(arrays), len(arrays))
    assert len(found) == len(arrays)
    for (ids, lengths), (ids_, lengths_) in zip(arrays, found, strict=True):
        assert np.array_equal(ids, ids_)
        assert np.array_equal(lengths, lengths_)
