from __future__ import annotations

import numpy as np

from mlx_router.head.calibration import Calibration, fit_calibration
from mlx_router.training.metrics import expected_calibration_error


def _overconfident(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits three times too large for the truth that is drawn from them."""
    logits = rng.normal(size=(rows, 8))
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(8, p=row) for row in share])
    return (3 * logits).astype(np.float32), np.eye(8, dtype=bool)[truth]


def _error(p: np.ndarray, truth: np.ndarray) -> float:
    return expected_calibration_error(p.max(axis=1), truth[np.arange(len(p)), p.argmax(axis=1)])


def test_overconfidence_is_taken_away() -> None:
    rng = np.random.default_rng(0)
    logits, truth = _overconfident(rng, 3000)
    fresh, fresh_truth = _overconfident(rng, 3000)
    before = _error(Calibration(np.ones(8), np.zeros(8), temperature=1.0)(fresh), fresh_truth)
    after = _error(fit_calibration(logits, truth, temperature=1.0)(fresh), fresh_truth)
    assert before > 0.15
    assert after < 0.04


def test_plain_sigmoid_without_calibration() -> None:
    p = Calibration.identity(2)(np.array([[0.0, 100.0]], dtype=np.float32))
    np.testing.assert_allclose(p, [[0.5, 1.0]])


def test_survives_json() -> None:
    rng = np.random.default_rng(1)
    fitted = fit_calibration(*_overconfident(rng, 500), temperature=2.5)
    logits = rng.normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_array_equal(Calibration.from_json(fitted.to_json())(logits), fitted(logits))


def test_huge_logits_stay_finite() -> None:
    p = Calibration(np.ones(3), np.zeros(3), temperature=0.1)(np.array([[1e6, -1e6, 0]], dtype=np.float32))
    assert np.isfinite(p).all()


def test_temperature_softens_the_distribution() -> None:
    logits = np.log(np.array([[0.81, 0.09, 0.09]], dtype=np.float32))
    p = Calibration(np.ones(3), np.zeros(3), temperature=2.0)(logits)
    np.testing.assert_allclose(p, [[0.6, 0.2, 0.2]], atol=1e-6)


def test_the_best_label_is_as_likely_as_it_says_where_doubt_has_another_shape() -> None:
    """A tenth of the rows are mislabelled: no temperature and no Platt fit bends both ends of the curve."""
    rng = np.random.default_rng(3)

    def noisy(rows: int) -> tuple[np.ndarray, np.ndarray]:
        logits = 4 * rng.normal(size=(rows, 8))
        share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        label = np.array([rng.choice(8, p=row) if rng.random() > 0.1 else rng.integers(8) for row in share])
        return logits.astype(np.float32), np.eye(8, dtype=bool)[label]

    fitted = fit_calibration(*noisy(4000), temperature=1.2)
    logits, truth = noisy(20000)
    without_beta = Calibration(fitted.slope, fitted.offset, fitted.temperature)
    assert _error(fitted(logits), truth) < 0.015 < _error(without_beta(logits), truth)
