"""Thresholds chosen on validation rows: one a label, and one below which a prompt is like nothing known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

REJECT_SHARE = 0.03  # of in-domain validation prompts that may fall below every threshold
CEILING = 0.5  # a label's threshold is never above this calibrated probability
FLOOR = 0.05


def choose_thresholds(
    scores: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], reject_share: float = REJECT_SHARE
) -> tuple[npt.NDArray[np.float64], float]:
    """Per-label thresholds (C,) and the out-of-domain threshold, from (n, C) calibrated scores and truth.

    A label's threshold is the one with the best F1 on its rows, drawn towards the best common one, because a few
    dozen rows choose badly alone, and capped so that no more than `reject_share` of the prompts whose best label is
    this one fall below it.
    """
    common = _best_f1(scores.reshape(-1), right.reshape(-1))
    best = scores.argmax(axis=1)
    out = np.empty(scores.shape[1])
    for label in range(scores.shape[1]):
        own = _best_f1(scores[:, label], right[:, label])
        support = int(right[:, label].sum())
        blended = (own * support + common * 20) / (support + 20)
        winners = scores[(best == label) & right[:, label], label]
        cap = float(np.quantile(winners, reject_share)) if len(winners) else common
        out[label] = np.clip(min(blended, cap), FLOOR, CEILING)
    outside = float(np.clip(np.quantile(scores.max(axis=1), reject_share / 2), FLOOR, CEILING))
    return out, outside


def least_evidence(evidence: npt.NDArray[np.float64], reject_share: float = REJECT_SHARE) -> float:
    """What the best logit of a prompt must reach: half of `reject_share` of in-domain validation prompts do not.

    Source: Hendrycks et al. 2022, Scaling out-of-distribution detection, the maximum logit score.
    """
    return float(np.quantile(evidence, reject_share / 2))


def _best_f1(scores: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> float:
    grid = np.linspace(FLOOR, CEILING, 46)
    total = int(right.sum())
    f1 = [2 * float((right & (scores >= t)).sum()) / max(float((scores >= t).sum()) + total, 1.0) for t in grid]
    return float(grid[int(np.argmax(f1))])
