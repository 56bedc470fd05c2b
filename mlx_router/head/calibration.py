"""Logits to probabilities that mean what they say, label by label.

Temperature cannot calibrate the largest of many sigmoids: it moves all labels alike, while the error differs from
label to label. Each label gets its own slope and offset (Platt), held near those fitted on all labels together,
because one label has only a few dozen validation rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
_PRIOR_ROWS = 40.0  # strength of the shared fit, in validation rows
_STEPS = 60


@dataclass(frozen=True)
class Calibration:
    """p = sigmoid(slope * logit + offset), (C,) each."""

    slope: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]

    def __call__(self, logits: FloatArray) -> npt.NDArray[np.float64]:
        """(B, C) logits -> (B, C) calibrated probabilities."""
        return _sigmoid(logits * self.slope + self.offset)

    @classmethod
    def identity(cls, classes: int) -> Calibration:
        """Plain sigmoid, for checkpoints that carry no calibration."""
        return cls(np.ones(classes), np.zeros(classes))

    def to_json(self) -> dict[str, Any]:
        """For meta.json."""
        return {
            "method": "platt per label, shrunk to the shared fit",
            "slope": [round(float(value), 6) for value in self.slope],
            "offset": [round(float(value), 6) for value in self.offset],
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Calibration:
        """From meta.json."""
        return cls(np.array(raw["slope"], dtype=np.float64), np.array(raw["offset"], dtype=np.float64))


def fit_calibration(logits: FloatArray, targets: npt.NDArray[np.bool_]) -> Calibration:
    """Fit on validation rows only: (N, C) logits, (N, C) truth."""
    shared = _platt(logits.reshape(-1), targets.reshape(-1), prior=(1.0, 0.0), strength=1.0)
    strength = _PRIOR_ROWS
    fits = [_platt(logits[:, c], targets[:, c], prior=shared, strength=strength) for c in range(logits.shape[1])]
    return Calibration(np.array([fit[0] for fit in fits]), np.array([fit[1] for fit in fits]))


def _platt(
    logits: FloatArray, targets: npt.NDArray[np.bool_], *, prior: tuple[float, float], strength: float
) -> tuple[float, float]:
    """Logistic fit of one slope and offset by Newton's method, with a Gaussian prior around `prior`.

    Source: Platt 1999, Probabilistic Outputs for Support Vector Machines, with the prior of a hierarchical model.
    """
    x = logits.astype(np.float64)
    y = targets.astype(np.float64)
    w = np.array(prior, dtype=np.float64)
    design = np.stack([x, np.ones_like(x)], axis=1)
    ridge = strength * np.diag([1.0 / 25.0, 1.0 / 100.0])
    for _ in range(_STEPS):
        p = _sigmoid(design @ w)
        gradient = design.T @ (p - y) + ridge @ (w - np.array(prior))
        hessian = (design * (p * (1 - p))[:, None]).T @ design + ridge
        step = np.linalg.solve(hessian + 1e-9 * np.eye(2), gradient)
        w -= np.clip(step, -1.0, 1.0)
        if float(np.abs(step).max()) < 1e-8:
            break
    return float(max(w[0], 1e-3)), float(w[1])


def _sigmoid(x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0))), dtype=np.float64)
