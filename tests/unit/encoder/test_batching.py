from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlx_router.encoder.batching import by_length, pad


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200), st.integers(1, 33), st.none() | st.integers(1, 500))
def test_every_row_is_in_one_batch_and_batches_ascend(lengths: list[int], size: int, tokens: int | None) -> None:
    rows = [np.zeros(length, dtype=np.int32) for length in lengths]
    batches = list(by_length(rows, size, tokens))
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(rows)))
    widths = [max(lengths[i] for i in batch) for batch in batches]
    assert widths == sorted(widths)
    assert all(len(batch) <= size for batch in batches)
    if tokens is not None:
        assert all(
            len(batch) == 1 or len(batch) * width <= tokens for batch, width in zip(batches, widths, strict=True)
        )


def test_batches_are_full() -> None:
    rows = [np.zeros(10, dtype=np.int32)] * 100
    assert [len(batch) for batch in by_length(rows, 32, 100)] == [10] * 10
    assert [len(batch) for batch in by_length(rows, 32)] == [32, 32, 32, 4]


def test_padding_is_right_and_zero() -> None:
    ids, lengths = pad([np.array([5, 6], dtype=np.int32), np.array([7], dtype=np.int32)])
    assert ids.tolist() == [[5, 6], [7, 0]]
    assert lengths.tolist() == [2, 1]
