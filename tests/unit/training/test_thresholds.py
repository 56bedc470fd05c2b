from __future__ import annotations

import numpy as np
import pytest

from mlx_router.head.classifier import Scores
from mlx_router.head.decision import Thresholds, decide
from mlx_router.training.thresholds import REJECT_BUDGET, choose_thresholds

LABELS = ("general", "rust", "sql")


def _validation(rows: int = 2000) -> tuple[Scores, np.ndarray]:
    """Prompts of three labels whose probabilities are those of their logits."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, rows)
    logits = rng.normal(size=(rows, 3)) + 3.0 * np.eye(3)[truth]
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Scores(share, logits.max(axis=1)), np.eye(3, dtype=bool)[truth]


def _rejected(scored: Scores, thresholds: Thresholds) -> np.ndarray:
    decisions = [
        decide(sorted(zip(LABELS, row, strict=True), key=lambda item: -item[1]), thresholds, evidence=float(evidence))
        for row, evidence in zip(scored.probabilities, scored.evidence, strict=True)
    ]
    return np.array([decision.reason != "classified" for decision in decisions])


def test_caution_uses_its_budget_and_no_more() -> None:
    scored, right = _validation()
    thresholds = choose_thresholds(scored, right, LABELS, "general")
    cost = _rejected(scored, thresholds)[~right[:, 0]].mean()
    assert thresholds.fallback_share < 1.0
    assert REJECT_BUDGET / 2 < cost <= REJECT_BUDGET


def test_a_fallback_that_is_no_label_has_no_share() -> None:
    scored, right = _validation()
    assert choose_thresholds(scored, right, LABELS, "elsewhere").fallback_share == 1.0


@pytest.mark.parametrize("label", LABELS)
def test_thresholds_lie_in_their_bounds(label: str) -> None:
    scored, right = _validation()
    assert 0.05 <= choose_thresholds(scored, right, LABELS, "general").per_label[label] <= 0.3
