"""Logits to probabilities that mean what they say, label by label.

Three steps. A shared temperature turns the logits of a prompt into a distribution, because labels compete for it. Then
each label gets its own slope and offset (Platt) on its log-odds, because one label's 0.7 is not another's; this is held
near the fit of all labels together, since one label has only a few dozen validation rows. At last one curve for all
(beta calibration), fitted where it matters most: on the best label of each prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
_PRIOR_ROWS = 40.0  # strength of the shared fit, in validation rows
_STEPS = 60
_FLAT = 1e-3  # slopes are never below this: more evidence never means less probability
_ROUND = 6


@dataclass(frozen=True)
class Calibration:
    """q = sigmoid(slope * u + offset), (C,) each; u are log-odds of softmax(logits / temperature).

    Then p = sigmoid(a log q - b log(1 - q) + c), with a, b and c in `beta`. Without a temperature, u are the logits
    themselves, and without `beta`, p is q: the plain multi-label sigmoid of the original system.
    """

    slope: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    temperature: float | None = None
    beta: tuple[float, float, float] | None = None

    def __call__(self, logits: FloatArray) -> npt.NDArray[np.float64]:
        """(B, C) logits -> (B, C) calibrated probabilities."""
        q = _sigmoid(log_odds(logits, self.temperature) * self.slope + self.offset)
        return q if self.beta is None else _sigmoid(_beta_features(q) @ np.array(self.beta))

    @classmethod
    def identity(cls, classes: int) -> Calibration:
        """Plain sigmoid, for checkpoints that carry no calibration."""
        return cls(np.ones(classes), np.zeros(classes))

    def to_json(self) -> dict[str, Any]:
        """For meta.json."""
        return {
            "method": "shared temperature, Platt per label shrunk to the shared fit, beta on the best label",
            "temperature": self.temperature,
            "slope": [round(float(value), _ROUND) for value in self.slope],
            "offset": [round(float(value), _ROUND) for value in self.offset],
            "beta": self.beta,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Calibration:
        """From meta.json."""
        slope, offset = (np.array(raw[key], dtype=np.float64) for key in ("slope", "offset"))
        return cls(slope, offset, raw.get("temperature"), tuple(raw["beta"]) if raw.get("beta") else None)


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
    q = Calibration(slope, offset, temperature)(logits)
    best = q.argmax(axis=1)[:, None]
    features = _beta_features(np.take_along_axis(q, best, axis=1)[:, 0])
    a, b, c = _logistic(features, np.take_along_axis(targets, best, axis=1)[:, 0], prior=(1.0, 1.0, 0.0), strength=1.0)
    beta = (round(max(a, _FLAT), _ROUND), round(max(b, _FLAT), _ROUND), round(c, _ROUND))
    return Calibration(slope, offset, temperature, beta)


def _platt(
    x: npt.NDArray[np.float64], targets: npt.NDArray[np.bool_], *, prior: tuple[float, float], strength: float
) -> tuple[float, float]:
    """Slope and offset of a logistic fit on one feature.

    Source: Platt 1999, Probabilistic Outputs for Support Vector Machines, with the prior of a hierarchical model.
    """
    slope, offset = _logistic(np.stack([x, np.ones_like(x)], axis=1), targets, prior=prior, strength=strength)
    return max(slope, _FLAT), offset


def _beta_features(q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log q, -log(1 - q) and 1 along a new last axis. Source: Kull et al. 2017, Beta calibration."""
    q = np.clip(q, 1e-7, 1 - 1e-7)
    return np.stack([np.log(q), -np.log1p(-q), np.ones_like(q)], axis=-1)


def _logistic(
    design: npt.NDArray[np.float64], targets: npt.NDArray[np.bool_], *, prior: Sequence[float], strength: float
) -> tuple[float, ...]:
    """Logistic regression by Newton's method with a Gaussian prior around `prior`; the last column is the offset's."""
    y, centre = targets.astype(np.float64), np.array(prior, dtype=np.float64)
    w = centre.copy()
    ridge = strength * np.diag([1.0 / 25.0] * (len(w) - 1) + [1.0 / 100.0])
    for _ in range(_STEPS):
        p = _sigmoid(design @ w)
        gradient = design.T @ (p - y) + ridge @ (w - centre)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + ridge
        step = np.linalg.solve(hessian + 1e-9 * np.eye(len(w)), gradient)
        w -= np.clip(step, -1.0, 1.0)
        if float(np.abs(step).max()) < 1e-8:
            break
    return tuple(float(value) for value in w)


def _sigmoid(x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0))), dtype=np.float64)
