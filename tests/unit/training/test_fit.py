from __future__ import annotations

import numpy as np
import pytest

from mlx_router.errors import ConfigError
from mlx_router.training.fit import Example, Recipe, fit_head, row_weights
from mlx_router.training.metrics import Truth


def _data(rows: int = 300) -> tuple[Example, Truth]:
    rng = np.random.default_rng(0)
    primary = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 12)).astype(np.float32) + 3 * np.eye(3, 12, dtype=np.float32)[primary]
    y = np.eye(3, dtype=np.float32)[primary]
    return Example(x, y, row_weights(primary, 3)), Truth(primary, y > 0, ("en",) * rows)


@pytest.mark.parametrize("loss", ["bce", "ce", "both"])
def test_learns_what_can_be_learned(loss: str) -> None:
    data, truth = _data()
    head, log = fit_head(data, data, truth, Recipe(epochs=20, hidden=32, batch_size=32, loss=loss, learning_rate=5e-3))
    assert (head.logits(data.x).argmax(axis=1) == truth.primary).mean() > 0.95
    assert log[-1].loss < log[0].loss


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    data, truth = _data()
    first, again, other = (
        fit_head(data, data, truth, Recipe(epochs=2, hidden=16, seed=seed))[0] for seed in (42, 42, 43)
    )
    np.testing.assert_array_equal(first.w1, again.w1)
    assert not np.array_equal(first.w1, other.w1)


def test_heads_fold_into_one_that_answers_with_their_mean() -> None:
    data, truth = _data()
    folded, log = fit_head(data, data, truth, Recipe(epochs=2, hidden=16, heads=3))
    seeds = (42, 1042, 2042)
    single = [fit_head(data, data, truth, Recipe(epochs=2, hidden=16, seed=seed))[0].logits(data.x) for seed in seeds]
    assert folded.hidden == 48
    assert [(entry.head, entry.epoch) for entry in log] == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]
    np.testing.assert_allclose(folded.logits(data.x), np.mean(single, axis=0), atol=1e-5)


def test_a_dimension_without_spread_keeps_small_weights() -> None:
    data, truth = _data()
    data.x[:, 5] = 1e-8 * data.x[:, 6]
    head = fit_head(data, data, truth, Recipe(epochs=2, hidden=16))[0]
    assert np.abs(head.w1[:, 5]).max() < 1e3
    assert np.abs(head.logits(data.x + 1e-7 * np.eye(12, dtype=np.float32)[5]) - head.logits(data.x)).max() < 1e-3


def test_rare_labels_weigh_more() -> None:
    weights = row_weights(np.array([0] * 90 + [1] * 10), 2)
    assert weights[95] == pytest.approx(3 * weights[0])
    assert weights.mean() == pytest.approx(1.0)


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="loss must be one of bce, ce, both"):
        Recipe(loss="hinge")
