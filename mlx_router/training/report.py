"""report.md and its pictures: a training run for people."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_router.training import metrics
from mlx_router.training.dataset import Dataset

PICTURES = ("domains.png", "confusion.png", "reliability.png")


def write_report(folder: Path, figures: dict[str, Any], data: Dataset, scores: npt.NDArray[np.float64]) -> None:
    """Write report.md, and the pictures where matplotlib is installed (`pip install mlx-router[plots]`).

    Args:
        scores: of the labelled test rows, (n, C).
    """
    test = data.inside(data.split.test)
    truth = data.truth(test)
    pictures = importlib.util.find_spec("matplotlib") is not None
    if pictures:
        from mlx_router.training import plots

        plots.domains(folder / "domains.png", figures["test"]["by_label"])
        plots.confusion(folder / "confusion.png", scores, truth, data.labels)
        plots.reliability(folder / "reliability.png", scores, truth)
    (folder / "report.md").write_text(_markdown(figures, data, scores, truth, test, pictures), encoding="utf-8")


def _markdown(
    figures: dict[str, Any],
    data: Dataset,
    scores: npt.NDArray[np.float64],
    truth: metrics.Truth,
    test: npt.NDArray[np.intp],
    pictures: bool,
) -> str:
    result, rejected = figures["test"], figures["rejection"]
    lines = [
        "# Router report",
        "",
        f"{len(data.rows)} rows, {len(data.labels)} labels; trained on {len(data.split.train)}, thresholds and "
        f"calibration from {len(data.split.valid)}, measured once on {len(data.split.test)}.",
        "",
        "The n-gram model that is served was then fitted on every row; the figures are those of its twin that was not.",
        "",
        "| test rows | n | top-1 | top-1, any right answer | top-3 | macro-F1 | weighted-F1 | ECE |",
        "|---|---|---|---|---|---|---|---|",
        _row("all", result),
        *(_row(lang, figure) for lang, figure in result["by_language"].items()),
        "",
        _rejection(rejected),
        "",
    ]
    if pictures:
        lines += [line for name in PICTURES for line in (f"![{name.removesuffix('.png')}]({name})", "")]
    else:
        lines += ["No pictures: matplotlib is not installed (`pip install mlx-router[plots]`).", ""]
    lines += ["## Most frequent confusions", ""]
    for item in metrics.confusions(scores, truth, data.labels, most=12):
        example = " ".join(data.rows[test[item["rows"][0]]].text.split())[:120]
        lines.append(f"- {item['label']} taken for {item['predicted']} ({len(item['rows'])}): {example}")
    lines += ["", "## Labels", "", "| label | test rows | precision | recall | F1 |", "|---|---|---|---|---|"]
    for label, figure in result["by_label"].items():
        lines.append(
            f"| {label} | {figure['support']} | {figure['precision']:.3f} | {figure['recall']:.3f} "
            f"| {figure['f1']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def _rejection(figures: Mapping[str, Any]) -> str:
    inside = f"Labelled prompts rejected: {figures['inside_rejected']:.1%} of {figures['inside_n']}."
    if not figures["outside_n"]:
        return f"{inside} The corpus has no outside prompts (`_outside.jsonl`) to measure how strangers are caught."
    return (
        f"Outside prompts sent to the fallback: {figures['outside_caught']:.1%} of {figures['outside_n']}, "
        f"AUROC {figures['auroc']:.3f}. {inside}"
    )


def _row(name: str, figure: dict[str, float]) -> str:
    columns = ("top1", "top1_lenient", "top3", "macro_f1", "weighted_f1", "ece")
    return f"| {name} | {figure['n']} | " + " | ".join(f"{figure[column]:.3f}" for column in columns) + " |"
