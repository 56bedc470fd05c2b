"""Pictures of a report, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

mpl.use("Agg")
from matplotlib import pyplot as plt

from mlx_router.training import metrics

INK, ACCENT, GRID = "#1f2430", "#2f6fde", "#d9dce3"
_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9,
}


def domains(path: Path, by_label: Mapping[str, Mapping[str, float]]) -> None:
    """Horizontal bars of F1, worst label at the bottom."""
    items = sorted(by_label.items(), key=lambda item: item[1]["f1"])
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8, 0.22 * len(items) + 1.2), layout="constrained")
        values = [value["f1"] for _, value in items]
        colors = [ACCENT if value >= 0.8 else "#e08a2e" for value in values]
        axes.barh([label for label, _ in items], values, color=colors, height=0.72)
        for row, value in enumerate(values):
            axes.text(value + 0.005, row, f"{value:.2f}", va="center", fontsize=7)
        axes.set(xlim=(0, 1.05), ylim=(-0.6, len(items) - 0.4), xlabel="F1 on test rows", title="F1 per domain")
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)


def confusion(path: Path, scores: npt.NDArray[np.float64], truth: metrics.Truth, labels: Sequence[str]) -> None:
    """Share of each label's rows (line) that went to each label (column)."""
    counts = np.zeros((len(labels), len(labels)))
    np.add.at(counts, (truth.primary, scores.argmax(axis=1)), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with plt.rc_context({**_STYLE, "font.size": 7}):
        side = 0.2 * len(labels) + 2.4
        figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
        for row, column in zip(*np.nonzero(share >= 0.05), strict=True):
            color = "white" if share[row, column] > 0.5 else INK
            axes.text(
                column,
                row,
                f"{100 * share[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=5,
                color=color,
            )
        axes.set(xlabel="predicted", ylabel="primary label", title="Confusion matrix, % of a label's test rows")
        figure.colorbar(image, ax=axes, shrink=0.6)
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)


def reliability(path: Path, scores: npt.NDArray[np.float64], truth: metrics.Truth) -> None:
    """Accuracy against confidence of the best score, with the rows of each bin below."""
    best = scores.argmax(axis=1)
    right = truth.right[np.arange(len(best)), best]
    bins = metrics.reliability_bins(scores.max(axis=1), right)
    error = metrics.expected_calibration_error(scores.max(axis=1), right)
    width = 1 / metrics.BINS
    with plt.rc_context(_STYLE):
        figure, (upper, lower) = plt.subplots(
            2, 1, figsize=(5, 5.6), height_ratios=(4, 1), sharex=True, layout="constrained"
        )
        upper.plot([0, 1], [0, 1], color="#9aa1b0", linewidth=1, linestyle="--", label="perfect")
        upper.bar(
            [low for low, *_ in bins],
            [item[2] for item in bins],
            width=width * 0.92,
            align="edge",
            color=ACCENT,
        )
        upper.plot(
            [item[1] for item in bins],
            [item[2] for item in bins],
            "o",
            color=INK,
            markersize=3,
            label="measured",
        )
        upper.set(ylabel="accuracy", ylim=(0, 1), title=f"Reliability of the best score (ECE {error:.3f})")
        upper.legend(frameon=False, loc="upper left")
        lower.bar(
            [low for low, *_ in bins],
            [item[3] for item in bins],
            width=width * 0.92,
            align="edge",
            color="#9aa1b0",
        )
        lower.set(xlabel="calibrated score", ylabel="rows", xlim=(0, 1))
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)
