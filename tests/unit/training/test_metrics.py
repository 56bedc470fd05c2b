from __future__ import annotations

import numpy as np
import pytest

from mlx_router.training import metrics
from mlx_router.training.metrics import Truth

LABELS = ["a", "b", "c"]
SCORES = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.9]])


def test_strict_and_lenient() -> None:
    truth = Truth.build([("a",), ("a", "b"), ("b",), ("c",)], ["en", "fr", "fr", "en"], LABELS)
    figures = metrics.summary(SCORES, truth)
    assert figures["top1"] == 0.5
    assert figures["top1_lenient"] == 0.75
    assert figures["top3"] == 1.0
    assert metrics.by_language(SCORES, truth)["en"]["top1"] == 1.0


def test_f1_against_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    predicted, actual = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    np.testing.assert_allclose(
        metrics.f1_per_label(predicted, actual, 5), f1_score(actual, predicted, average=None), atol=1e-12
    )


def test_auroc_against_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    inside, outside = rng.integers(0, 9, 80) / 8, rng.integers(0, 7, 60) / 8
    wanted = roc_auc_score([1] * 80 + [0] * 60, np.concatenate([inside, outside]))
    assert metrics.auroc(inside, outside) == pytest.approx(wanted)


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, True, True, False])
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(0.05)


def test_worst_confusion_comes_first() -> None:
    truth = Truth.build([("b",), ("a",), ("b",), ("c",)], ["en"] * 4, LABELS)
    first, *rest = metrics.confusions(SCORES, truth, LABELS)
    assert (first["label"], first["predicted"], first["rows"]) == ("b", "a", [0, 2])
    assert [item["label"] for item in rest] == ["a"]
