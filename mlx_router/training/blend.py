"""How much the words count beside the meaning, and how sure the sum is: two numbers, chosen on validation rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.optimize

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Blend:
    """softmax((meaning + weight * words) / temperature)."""

    weight: float
    temperature: float


def fit_blend(meaning: FloatArray, words: FloatArray, right: npt.NDArray[np.bool_]) -> Blend:
    """Minimise the negative log-likelihood of the right labels, all arguments (n, C).

    Two smooth parameters over a thousand rows: Nelder-Mead finds them without a gradient and always the same way.
    """

    def loss(scales: npt.NDArray[np.float64]) -> float:
        z = scales[0] * meaning + scales[1] * words
        z = z - z.max(axis=1, keepdims=True)
        share = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        return float(-np.log((share * right).sum(axis=1) + 1e-9).mean())

    found = scipy.optimize.minimize(loss, np.array([0.5, 10.0]), method="Nelder-Mead").x
    head, lexical = max(float(found[0]), 1e-3), max(float(found[1]), 0.0)
    return Blend(weight=round(lexical / head, 4), temperature=round(1 / head, 6))
