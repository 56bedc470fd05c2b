from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_router.errors import CorpusError
from mlx_router.training.corpus import Row
from mlx_router.training.similarity import groups, near_duplicates, similar_pairs
from mlx_router.training.split import check_sizes, split_rows


def _rows(counts: dict[str, int]) -> list[Row]:
    return [Row(f"{label} {i}", (label,), "en", "", "") for label, n in counts.items() for i in range(n)]


def test_stratified_and_reproducible() -> None:
    rows = _rows({"a": 100, "b": 50})
    split = split_rows(rows, np.arange(150))
    for label, total in (("a", 100), ("b", 50)):
        sizes = [sum(rows[i].label == label for i in part) for part in (split.train, split.valid, split.test)]
        assert sizes == [total * 8 // 10, total // 10, total // 10]
    np.testing.assert_array_equal(split.train, split_rows(rows, np.arange(150)).train)
    assert not np.array_equal(split.valid, split_rows(rows, np.arange(150), seed=1).valid)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 30), min_size=40, max_size=120))
def test_groups_are_never_separated(group: list[int]) -> None:
    split = split_rows(_rows({"a": len(group)}), np.array(group))
    parts = [{group[i] for i in part} for part in (split.train, split.valid, split.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert sum(len(part) for part in (split.train, split.valid, split.test)) == len(group)


def test_near_duplicates_form_one_group() -> None:
    texts = ["route the usb pair now", "route the usb pair now!", "unrelated words"]
    vectors = np.array([[1, 0], [0.8, 0.6], [-1, 0]], dtype=np.float32)
    pairs = near_duplicates(texts, vectors)
    assert [(i, j, kind) for i, j, _, kind in pairs] == [(0, 1, "characters")]
    assert groups(3, pairs).tolist() == [0, 0, 2]


def test_every_small_label_is_named() -> None:
    with pytest.raises(CorpusError) as error:
        check_sizes(_rows({"a": 12, "b": 9, "c": 3}), ["a", "b", "c", "d"])
    assert [label in error.value.message for label in ("a:", "b: 9", "c: 3", "d: 0")] == [False, True, True, True]


def test_one_label_is_nothing_to_choose_from() -> None:
    with pytest.raises(CorpusError, match="two labels to choose between, the corpus has only a"):
        check_sizes(_rows({"a": 40}), ["a"])


@pytest.mark.parametrize("dim", [8, 384])
def test_similar_pairs_are_those_of_the_whole_product(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_router.training.similarity._PAIRS", 7)  # several rounds a block
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(900, dim)) * rng.exponential(size=dim)
    vectors[450:] = 0.8 * vectors[:450] + 0.2 * vectors[450:]
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    wanted = {(i, j) for i, j in np.argwhere(unit @ unit.T >= 0.9) if i < j}
    found = list(similar_pairs(unit, 0.9))
    assert wanted
    assert {(i, j) for i, j, _ in found} == wanted
    assert all(cosine == pytest.approx(float(unit[i] @ unit[j]), abs=1e-6) for i, j, cosine in found)
