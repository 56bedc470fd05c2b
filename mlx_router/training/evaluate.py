"""Figures of one classifier on one set of rows, as metrics.json and `router eval` give them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_router.errors import CorpusError
from mlx_router.head.decision import Thresholds, decide
from mlx_router.training import metrics
from mlx_router.training.metrics import Scores, Truth


@dataclass(frozen=True)
class EvalSet:
    """Prompts with their right answers, from a file of rows {"text", "label", "also", "lang"}."""

    texts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    langs: tuple[str, ...]


def read_eval_set(path: Path, labels: Sequence[str]) -> EvalSet:
    """Read an evaluation file; corpus rows ("labels") are understood too. Raises CorpusError for every bad row."""
    texts, answers, langs, problems = [], [], [], []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            answer = row["labels"] if "labels" in row else [row["label"], *row.get("also", [])]
            texts.append(str(row["text"]))
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f'{path}:{number}: expected {{"text", "label", "also", "lang"}}: {error}')
            continue
        if not answer or answer[0] not in labels:
            problems.append(f"{path}:{number}: unknown label {answer[:1]}")
        answers.append(tuple(answer))
        langs.append(str(row.get("lang", "?")))
    if problems:
        raise CorpusError.from_problems(f"{path}: bad rows", problems)
    if not texts:
        raise CorpusError(f"{path}: no rows")
    return EvalSet(tuple(texts), tuple(answers), tuple(langs))


def evaluate(scores: Scores, truth: Truth, labels: Sequence[str]) -> dict[str, Any]:
    """Everything known about (n, C) calibrated scores: overall, per language, per label."""
    return {
        **metrics.summary(scores, truth),
        "by_language": metrics.by_language(scores, truth),
        "by_label": metrics.per_label(scores, truth, labels),
    }


def rejection(
    inside: Scores, outside: Scores, truth: Truth, labels: Sequence[str], thresholds: Thresholds
) -> dict[str, float]:
    """How well prompts that belong nowhere are kept from the specialists.

    Returns:
        outside_caught: share of outside prompts that go to the fallback domain.
        inside_rejected: share of labelled prompts, the fallback domain's own aside, that fall below every threshold.
        auroc: of 1 - (best score of a label other than the fallback).
    """
    special = np.array([label != thresholds.fallback for label in labels])
    home = labels.index(thresholds.fallback) if thresholds.fallback in labels else -1
    own = truth.right[:, home] if home >= 0 else np.zeros(len(inside), dtype=np.bool_)
    decisions_in = [_domain(row, labels, thresholds) for row in inside[~own]]
    decisions_out = [_domain(row, labels, thresholds) for row in outside]
    result = {
        "outside_n": len(outside),
        "inside_n": len(decisions_in),
        "inside_rejected": _share(reason != "classified" for _, reason in decisions_in),
    }
    if len(outside):
        result["outside_caught"] = _share(domain == thresholds.fallback for domain, _ in decisions_out)
        result["auroc"] = metrics.auroc(inside[~own][:, special].max(axis=1), outside[:, special].max(axis=1))
        result["outside_max_p99"] = float(np.quantile(outside[:, special].max(axis=1), 0.99))
    return result


def _domain(row: npt.NDArray[np.float64], labels: Sequence[str], thresholds: Thresholds) -> tuple[str, str]:
    order = np.argsort(-row, kind="stable")
    decision = decide([(labels[i], float(row[i])) for i in order], thresholds)
    return decision.domain, decision.reason


def _share(flags: Any) -> float:
    values = list(flags)
    return float(np.mean(values)) if values else 0.0
