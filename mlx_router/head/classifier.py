"""Prompt in, calibrated scores out: one encoder, one head, one calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlx_router.encoder.encoder import Encoder
from mlx_router.head.calibration import Calibration
from mlx_router.head.weights import HeadWeights


@dataclass(frozen=True)
class Classifier:
    """What a router version holds, ready to run."""

    encoder: Encoder
    head: HeadWeights
    calibration: Calibration
    labels: tuple[str, ...]

    def scores(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """(B, 384) embeddings -> (B, C) calibrated probabilities."""
        return self.calibration(self._logits(embeddings))

    def classify(self, prompts: Sequence[str]) -> npt.NDArray[np.float64]:
        """n prompts -> (n, C) calibrated probabilities."""
        return self.scores(self.encoder.encode(prompts))

    def _logits(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.encoder.runtime.name != "mlx":
            return self.head.logits(embeddings)
        from mlx_router.head.mlp import forward

        return forward(self.head)(embeddings)
