"""The head as an MLX module: trained here, and run here where the encoder runs on MLX."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlx_router.compute import mx, nn
from mlx_router.head.weights import FloatArray, HeadWeights


class Head(nn.Module):
    """Linear -> GELU -> Dropout -> Linear: (B, D) -> (B, C) logits."""

    def __init__(self, dim: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, classes)

    def __call__(self, x: mx.array) -> mx.array:
        logits: mx.array = self.second(self.dropout(nn.gelu(self.first(x))))
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
