"""What a router is worth, from calibrated scores and the right answers; numpy only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
BINS = 15


@dataclass(frozen=True)
class Truth:
    """Right answers of n prompts over C labels."""

    primary: npt.NDArray[np.intp]  # (n,)
    right: npt.NDArray[np.bool_]  # (n, C): the primary label and the other right answers
    langs: tuple[str, ...]

    @classmethod
    def build(cls, answers: Sequence[Sequence[str]], langs: Sequence[str], labels: Sequence[str]) -> Truth:
        """`answers[i][0]` is the primary label of prompt i, the rest are right too."""
        index = {label: position for position, label in enumerate(labels)}
        right = np.zeros((len(answers), len(labels)), dtype=np.bool_)
        for row, answer in enumerate(answers):
            right[row, [index[label] for label in answer if label in index]] = True
        primary = np.array([index[answer[0]] for answer in answers], dtype=np.intp)
        return cls(primary, right, tuple(langs))

    def subset(self, mask: npt.NDArray[np.bool_]) -> Truth:
        """The prompts where `mask` (n,) is true."""
        langs = tuple(lang for lang, keep in zip(self.langs, mask, strict=True) if keep)
        return Truth(self.primary[mask], self.right[mask], langs)


def summary(scores: Scores, truth: Truth) -> dict[str, float]:
    """Headline figures over (n, C) calibrated scores."""
    if not len(scores):
        return {"n": 0}
    best = scores.argmax(axis=1)
    top3 = np.argsort(-scores, axis=1)[:, :3]
    rows = np.arange(len(scores))
    lenient = truth.right[rows, best]
    credited = np.where(lenient, truth.primary, best)
    per_label = f1_per_label(credited, truth.primary, scores.shape[1])
    support = np.bincount(truth.primary, minlength=scores.shape[1])
    seen = support > 0
    return {
        "n": len(scores),
        "top1": float((best == truth.primary).mean()),
        "top1_lenient": float(lenient.mean()),
        "top3": float((top3 == truth.primary[:, None]).any(axis=1).mean()),
        "top3_lenient": float(truth.right[rows[:, None], top3].any(axis=1).mean()),
        "macro_f1": float(f1_per_label(best, truth.primary, scores.shape[1])[seen].mean()),
        "macro_f1_lenient": float(per_label[seen].mean()),
        "weighted_f1": float(np.average(f1_per_label(best, truth.primary, scores.shape[1]), weights=support)),
        "ece": expected_calibration_error(scores.max(axis=1), lenient),
    }


def by_language(scores: Scores, truth: Truth) -> dict[str, dict[str, float]]:
    """`summary` for each language that occurs."""
    langs = np.array(truth.langs)
    return {str(lang): summary(scores[langs == lang], truth.subset(langs == lang)) for lang in sorted(set(truth.langs))}


def f1_per_label(
    predicted: npt.NDArray[np.intp], actual: npt.NDArray[np.intp], classes: int
) -> npt.NDArray[np.float64]:
    """One-against-rest F1 of each label, 0 where it never occurs: (C,)."""
    hits = np.bincount(actual[predicted == actual], minlength=classes).astype(np.float64)
    total = np.bincount(predicted, minlength=classes) + np.bincount(actual, minlength=classes)
    return np.asarray(2 * hits / np.maximum(total, 1), dtype=np.float64)


def expected_calibration_error(confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]) -> float:
    """Mean gap between confidence and accuracy over 15 equal-width bins, weighted by size.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks.
    """
    total = 0.0
    for low, mean, accuracy, count in reliability_bins(confidence, correct):
        del low
        total += count * abs(mean - accuracy)
    return total / max(len(confidence), 1)


def reliability_bins(
    confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_], bins: int = BINS
) -> list[tuple[float, float, float, int]]:
    """(lower edge, mean confidence, accuracy, rows) of each bin that has rows."""
    place = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    return [
        (
            b / bins,
            float(confidence[place == b].mean()),
            float(correct[place == b].mean()),
            int((place == b).sum()),
        )
        for b in range(bins)
        if (place == b).any()
    ]


def confusions(scores: Scores, truth: Truth, labels: Sequence[str], most: int = 15) -> list[dict[str, Any]]:
    """The most frequent wrong answers: {"label", "predicted", "rows"}; `rows` are indices."""
    best = scores.argmax(axis=1)
    wrong = [i for i in range(len(best)) if not truth.right[i, best[i]]]
    pairs = Counter((int(truth.primary[i]), int(best[i])) for i in wrong)
    return [
        {
            "label": labels[actual],
            "predicted": labels[predicted],
            "rows": [i for i in wrong if truth.primary[i] == actual and best[i] == predicted],
        }
        for (actual, predicted), _ in pairs.most_common(most)
    ]


def per_label(scores: Scores, truth: Truth, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of each label, other right answers credited."""
    rows = np.arange(len(scores))
    best = scores.argmax(axis=1)
    credited = np.where(truth.right[rows, best], truth.primary, best)
    f1 = f1_per_label(credited, truth.primary, len(labels))
    out = {}
    for index, label in enumerate(labels):
        predicted, actual = credited == index, truth.primary == index
        hits = float((predicted & actual).sum())
        out[label] = {
            "precision": hits / max(int(predicted.sum()), 1),
            "recall": hits / max(int(actual.sum()), 1),
            "f1": float(f1[index]),
            "support": int(actual.sum()),
        }
    return out


def auroc(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> float:
    """Probability that a positive scores above a negative (Mann-Whitney U, ties count half)."""
    values = np.concatenate([positive, negative])
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(1, len(values) + 1)
    unique, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    del unique
    ranks = (np.bincount(inverse, weights=ranks) / counts)[inverse]
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
