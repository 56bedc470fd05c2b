"""Prompt in, calibrated scores out: encoder and head for the meaning, n-grams for the words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mlx_router.encoder.encoder import Encoder
from mlx_router.head.calibration import Calibration
from mlx_router.head.lexical import Lexical
from mlx_router.head.weights import HeadWeights

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """What n prompts got for C labels."""

    probabilities: npt.NDArray[np.float64]  # (n, C), calibrated
    evidence: npt.NDArray[np.float64]  # (n,), the best logit: low where nothing in the prompt is known


@dataclass(frozen=True)
class Classifier:
    """What a router version holds, ready to run on the encoder's runtime."""

    encoder: Encoder
    head: HeadWeights
    calibration: Calibration
    labels: tuple[str, ...]
    lexical: Lexical | None = None  # checkpoints of the original system have none
    lexical_weight: float = 0.0
    _forward: Callable[[FloatArray], FloatArray] = field(init=False)

    def __post_init__(self) -> None:
        forward: Callable[[FloatArray], FloatArray] = self.head.logits
        if self.encoder.runtime.name == "mlx":
            from mlx_router.head import mlp

            forward = mlp.forward(self.head)
        object.__setattr__(self, "_forward", forward)

    def classify(self, prompts: Sequence[str]) -> Scores:
        """Score n prompts."""
        logits = self._forward(self.encoder.encode(prompts))
        if self.lexical is not None:
            logits = logits + self.lexical_weight * self.lexical.scores(prompts)
        return Scores(self.calibration(logits), logits.max(axis=1).astype(np.float64))
