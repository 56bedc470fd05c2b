"""Logits to probabilities that mean what they say, label by label.

Two steps. A shared temperature turns the logits of a prompt into a distribution, because labels compete for it; then
each label gets its own slope and offset (Platt) on its log-odds, because one label's 0.7 is not another's. The second
step is held near the fit of all labels together: one label has only a few dozen validation rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
_PRIOR_ROWS = 40.0  # strength of the shared fit, in validation rows
_STEPS = 60
_ROUND = 6


@dataclass(frozen=True)
class Calibration:
    """p = sigmoid(slope * u + offset), (C,) each; u are log-odds of softmax(logits / temperature).

    Without a temperature, u are the logits themselves: the plain multi-label sigmoid of the original system.
    """

    slope: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    temperature: float | None = None

    def __call__(self, logits: FloatArray) -> npt.NDArray[np.float64]:
        """(B, C) logits -> (B, C) calibrated probabilities."""
        return _sigmoid(log_odds(logits, self.temperature) * self.slope + self.offset)

    @classmethod
    def identity(cls, classes: int) -> Calibration:
        """Plain sigmoid, for checkpoints that carry no calibration."""
        return cls(np.ones(classes), np.zeros(classes))

    def to_json(self) -> dict[str, Any]:
        """For meta.json."""
        return {
            "method": "shared temperature, then Platt per label shrunk to the shared fit",
            "temperature": self.temperature,
            "slope": [round(float(value), _ROUND) for value in self.slope],
            "offset": [round(float(value), _ROUND) for value in self.offset],
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Calibration:
        """From meta.json."""
        slope, offset = (np.array(raw[key], dtype=np.float64) for key in ("slope", "offset"))
        return cls(slope, offset, raw.get("temperature"))


def log_odds(logits: FloatArray, temperature: float | None) -> npt.NDArray[np.float64]:
    """(B, C) logits -> (B, C) log-odds of their softmax at a temperature; the logits where it is None."""
    z = logits.astype(np.float64)
    if temperature is None:
        return z
    z = z / temperature
    z = z - z.max(axis=1, keepdims=True)
    share = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    share = np.clip(share, 1e-7, 1 - 1e-7)
    odds: npt.NDArray[np.float64] = np.log(share) - np.log1p(-share)
    return odds


def fit_calibration(logits: FloatArray, targets: npt.NDArray[np.bool_], temperature: float) -> Calibration:
    """Fit on validation rows only: (N, C) logits, (N, C) truth."""
    u = log_odds(logits, temperature)
    shared = _platt(u.reshape(-1), targets.reshape(-1), prior=(1.0, 0.0), strength=1.0)
    fits = [_platt(u[:, c], targets[:, c], prior=shared, strength=_PRIOR_ROWS) for c in range(u.shape[1])]
    slope, offset = (np.round(np.array(values), _ROUND) for values in zip(*fits, strict=True))
    return Calibration(slope, offset, temperature)


def _platt(
    x: npt.NDArray[np.float64], targets: npt.NDArray[np.bool_], *, prior: tuple[float, float], strength: float
) -> tuple[float, float]:
    """Logistic fit of one slope and offset by Newton's method, with a Gaussian prior around `prior`.

    Source: Platt 1999, Probabilistic Outputs for Support Vector Machines, with the prior of a hierarchical model.
    """
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
