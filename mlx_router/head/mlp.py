"""The head as an MLX module: trained here, and run here where the encoder runs on MLX."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import cast

import numpy as np

from mlx_router.compute import mx, nn
from mlx_router.head.weights import FloatArray, HeadWeights

# erf(x) = x P(x^2) / Q(x^2) on [-4, 4], highest power first. Source: Eigen's rational erf for float32.
_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02)


def gelu(x: mx.array) -> mx.array:
    """x * Phi(x) to 1e-6; products alone, because mlx's erf and exp on a CPU go element by element."""
    return cast(mx.array, _gelu(x))


@mx.custom_function
def _gelu(x: mx.array) -> mx.array:
    return x * _cumulative(x)


@_gelu.vjp
def _gelu_gradient(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    """Phi(x) + x phi(x); the polynomials' own derivatives take twice the time."""
    return cotangent * (_cumulative(x) + x * _density(x))


def _cumulative(x: mx.array) -> mx.array:
    """Phi, the normal distribution."""
    z = mx.clip(x * 0.7071067811865476, -4.0, 4.0)
    square = z * z
    top, bottom = (reduce(lambda sum_, factor: sum_ * square + factor, series) for series in (_P, _Q))
    return 0.5 * (1.0 + z * top / bottom)


def _density(x: mx.array) -> mx.array:
    """phi = Phi' to 1e-6: exp(-u) as the 64th power of the series of exp(-u / 64)."""
    u = mx.minimum(x * x * (0.5 / 64), 0.25)
    power = 1 - u * (1 - u * (1 / 2 - u * (1 / 6 - u * (1 / 24))))
    for _ in range(6):
        power = power * power
    return 0.3989422804014327 * power


class Head(nn.Module):
    """Linear -> GELU -> Dropout -> Linear: (B, D) -> (B, C) logits."""

    def __init__(self, dim: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, classes)

    def __call__(self, x: mx.array) -> mx.array:
        logits: mx.array = self.second(self.dropout(gelu(self.first(x))))
        return logits

    def export(self, mean: FloatArray, std: FloatArray) -> HeadWeights:
        """Fold the input standardisation (x - mean) / std, both (D,), into the first layer."""
        w1 = np.array(self.first.weight, dtype=np.float64)
        b1 = np.array(self.first.bias, dtype=np.float64)
        return HeadWeights(
            (w1 / std).astype(np.float32),
            (b1 - (w1 / std) @ mean.astype(np.float64)).astype(np.float32),
            np.array(self.second.weight),
            np.array(self.second.bias),
        )


def forward(weights: HeadWeights) -> Callable[[FloatArray], FloatArray]:
    """The head on the MLX device: (B, D) -> (B, C); use it from one thread."""
    head = Head(weights.w1.shape[1], weights.hidden, weights.classes, dropout=0.0)
    head.first.weight, head.first.bias = mx.array(weights.w1), mx.array(weights.b1)
    head.second.weight, head.second.bias = mx.array(weights.w2), mx.array(weights.b2)
    mx.eval(head.parameters())
    head.eval()

    def run(embeddings: FloatArray) -> FloatArray:
        return np.array(head(mx.array(embeddings)), copy=False)

    return run
