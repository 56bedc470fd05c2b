"""Thresholds, all chosen on validation rows: when a label is sure enough, and when a prompt is nobody's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlx_router.head.classifier import Scores
from mlx_router.head.decision import Thresholds

REJECT_SHARE = 0.01  # of a label's own prompts that may fall below its threshold
REJECT_BUDGET = 0.04  # of in-domain prompts that may be rejected in all
CEILING = 0.3  # a label's threshold is never above this calibrated probability
FLOOR = 0.05
_SHARES = np.round(np.arange(0.2, 1.001, 0.05), 2)


def choose_thresholds(scored: Scores, right: npt.NDArray[np.bool_], labels: Sequence[str], fallback: str) -> Thresholds:
    """Every threshold of a version, from n labelled prompts and their right answers (n, C).

    Thresholds on the labels' probabilities reject prompts that are hard to place, wherever they belong; the fallback's
    own probability and the best logit reject strangers. So the former are low, and caution has what is left of
    REJECT_BUDGET: the fallback wins at the smallest share of the best probability that the budget allows.
    """
    per_label = _per_label(scored.probabilities, right)
    best, top = scored.probabilities.argmax(axis=1), scored.probabilities.max(axis=1)
    evidence = least_evidence(scored.evidence)
    share = 1.0
    if fallback in labels:
        home = labels.index(fallback)
        ours = ~right[:, home]  # who asks for the fallback's answers is not rejected by them
        unsure = (top < per_label[best]) | (scored.evidence < evidence)
        rival = np.where(best == home, -1.0, scored.probabilities[:, home])
        rejected = [float((unsure | (rival >= value * top))[ours].mean()) for value in _SHARES]
        share = next(
            (float(value) for value, cost in zip(_SHARES, rejected, strict=True) if cost <= REJECT_BUDGET), 1.0
        )
    return Thresholds(
        per_label={label: round(float(value), 4) for label, value in zip(labels, per_label, strict=True)},
        out_of_domain=round(float(np.clip(np.quantile(top, REJECT_SHARE), FLOOR, CEILING)), 4),
        evidence=round(evidence, 4),
        fallback=fallback,
        fallback_share=share,
    )


def least_evidence(evidence: npt.NDArray[np.float64]) -> float:
    """What the best logit of a prompt must reach: REJECT_SHARE of in-domain validation prompts do not.

    Source: Hendrycks et al. 2022, Scaling out-of-distribution detection, the maximum logit score.
    """
    return float(np.quantile(evidence, REJECT_SHARE))


def _per_label(scores: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The threshold with the best F1 on a label's rows, drawn towards the best common one: (C,).

    A few dozen rows choose badly alone. Capped so that no more than REJECT_SHARE of the prompts that the label rightly
    wins fall below it.
    """
    common = _best_f1(scores.reshape(-1), right.reshape(-1))
    best = scores.argmax(axis=1)
    out = np.empty(scores.shape[1])
    for label in range(scores.shape[1]):
        own = _best_f1(scores[:, label], right[:, label])
        support = int(right[:, label].sum())
        blended = (own * support + common * 20) / (support + 20)
        winners = scores[(best == label) & right[:, label], label]
        cap = float(np.quantile(winners, REJECT_SHARE)) if len(winners) else common
        out[label] = np.clip(min(blended, cap), FLOOR, CEILING)
    return out


def _best_f1(scores: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> float:
    grid = np.linspace(FLOOR, CEILING, 46)
    total = int(right.sum())
    f1 = [2 * float((right & (scores >= t)).sum()) / max(float((scores >= t).sum()) + total, 1.0) for t in grid]
    return float(grid[int(np.argmax(f1))])
