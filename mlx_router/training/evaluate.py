"""Figures of one classifier on one set of rows, as metrics.json and `router eval` give them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_router.errors import CorpusError
from mlx_router.head.classifier import Scores as Scored
from mlx_router.head.decision import CLASSIFIED, Decision, Thresholds, decide
from mlx_router.training import metrics
from mlx_router.training.corpus import Row
from mlx_router.training.metrics import Scores, Truth


@dataclass(frozen=True)
class EvalSet:
    """Prompts with their right answers, from a file of rows {"text", "label", "also", "lang"}."""

    texts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    langs: tuple[str, ...]


def eval_rows(path: Path) -> list[Row]:
    """The prompts of an evaluation file as rows, whatever their labels. Raises CorpusError for every bad row."""
    found = read_eval_set(path)
    return [
        Row(text, answer, lang, "evaluation", f"{path.name}:{number}")
        for number, (text, answer, lang) in enumerate(
            zip(found.texts, found.answers, found.langs, strict=True), start=1
        )
    ]


def read_eval_set(path: Path, labels: Sequence[str] | None = None) -> EvalSet:
    """Read an evaluation file; corpus rows ("labels") are understood too. Raises CorpusError for every bad row.

    Args:
        labels: those that a row may have; any where None.
    """
    texts, answers, langs, problems = [], [], [], []
    unknown: dict[str, list[int]] = {}
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
        if not answer:
            problems.append(f"{path}:{number}: no label")
        elif labels is not None and answer[0] not in labels:
            unknown.setdefault(answer[0], []).append(number)
        answers.append(tuple(answer))
        langs.append(str(row.get("lang", "?")))
    problems += [
        f"{path}:{numbers[0]}: unknown label {label!r}" + (f", in {len(numbers)} rows" if len(numbers) > 1 else "")
        for label, numbers in unknown.items()
    ]
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
    inside: Scored, outside: Scored, truth: Truth, labels: Sequence[str], thresholds: Thresholds
) -> dict[str, float]:
    """How well prompts that belong nowhere are kept from the specialists.

    Returns:
        outside_caught: share of outside prompts that go to the fallback domain.
        inside_rejected: share of labelled prompts, the fallback domain's own aside, that fall below every threshold.
        auroc: of 1 - (best score of a label other than the fallback).
    """
    special = np.array([label != thresholds.fallback for label in labels])
    home = labels.index(thresholds.fallback) if thresholds.fallback in labels else -1
    own = truth.right[:, home] if home >= 0 else np.zeros(len(inside.evidence), dtype=np.bool_)
    decided = [decision for decision, skip in zip(_decisions(inside, labels, thresholds), own, strict=True) if not skip]
    result = {
        "outside_n": len(outside.evidence),
        "inside_n": len(decided),
        "inside_rejected": _share(decision.reason != CLASSIFIED for decision in decided),
    }
    if len(outside.evidence):
        strangers = _decisions(outside, labels, thresholds)
        known, strange = (part.probabilities[:, special].max(axis=1) for part in (inside, outside))
        result["outside_caught"] = _share(decision.domain == thresholds.fallback for decision in strangers)
        result["auroc"] = metrics.auroc(known[~own], strange)
        result["outside_max_p99"] = float(np.quantile(strange, 0.99))
    return result


def _decisions(scored: Scored, labels: Sequence[str], thresholds: Thresholds) -> list[Decision]:
    decisions = []
    for row, evidence in zip(scored.probabilities, scored.evidence, strict=True):
        ranked = [(labels[i], float(row[i])) for i in np.argsort(-row, kind="stable")]
        decisions.append(decide(ranked, thresholds, evidence=float(evidence)))
    return decisions


def _share(flags: Any) -> float:
    values = list(flags)
    return float(np.mean(values)) if values else 0.0
