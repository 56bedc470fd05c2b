"""Fits the head on embeddings: MLX, AdamW, one compiled step, the best epoch by validation kept.

Several heads that differ in their seed can be fitted and folded into one, which answers with their mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_router.compute import mx, nn, optim
from mlx_router.errors import ConfigError
from mlx_router.head.mlp import Head
from mlx_router.head.weights import HeadWeights
from mlx_router.training import metrics

FloatArray = npt.NDArray[np.float32]
LOSSES = ("bce", "ce", "both")
LEAST_STD = 1e-3  # MiniLM has three dimensions that are 0 but for rounding: they are not stretched to noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a head is trained; recorded whole in the version's provenance."""

    hidden: int = 256
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    dropout: float = 0.5
    label_smoothing: float = 0.0
    loss: str = "bce"
    seed: int = 42
    heads: int = 1  # fitted one after the other and folded into one of heads * hidden units

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if min(self.epochs, self.batch_size, self.hidden, self.heads) < 1:
            raise ConfigError("epochs, batch_size, hidden and heads must be at least 1")

    @property
    def all_epochs(self) -> int:
        """Of every head."""
        return self.epochs * self.heads

    def to_json(self) -> dict[str, Any]:
        """For meta.json and provenance.json."""
        return asdict(self)


@dataclass(frozen=True)
class Example:
    """Embeddings (n, 384), multi-label targets (n, C) and a weight a row (n,)."""

    x: FloatArray
    y: FloatArray
    weight: FloatArray


@dataclass(frozen=True)
class EpochLog:
    """What one epoch of one head reached."""

    head: int
    epoch: int
    loss: float
    valid_macro_f1: float


def row_weights(primary: npt.NDArray[np.intp], classes: int) -> FloatArray:
    """Inverse square root of a label's share, mean 1; rows without a label (index -1) count as one more label."""
    counts = np.bincount(primary % (classes + 1), minlength=classes + 1)
    weights = 1.0 / np.sqrt(np.maximum(counts, 1)[primary % (classes + 1)])
    normalised: FloatArray = (weights / weights.mean()).astype(np.float32)
    return normalised


def loss_of(logits: mx.array, y: mx.array, weight: mx.array, recipe: Recipe) -> mx.array:
    """Weighted mean loss over (B, C) logits and multi-label targets."""
    classes = y.shape[1]
    smooth = recipe.label_smoothing
    total = mx.zeros(y.shape[0])
    if recipe.loss in ("bce", "both"):
        soft = y * (1 - smooth) + smooth / classes
        total = total + nn.losses.binary_cross_entropy(logits, soft, with_logits=True, reduction="none").sum(axis=1)
    if recipe.loss in ("ce", "both"):
        count = y.sum(axis=1, keepdims=True)
        share = mx.where(count > 0, y / mx.maximum(count, 1.0), 1.0 / classes)
        soft = share * (1 - smooth) + smooth / classes
        total = total - (soft * (logits - mx.logsumexp(logits, axis=1, keepdims=True))).sum(axis=1)
    return (total * weight).mean()


def fit_head(
    train: Example,
    valid: Example,
    truth: metrics.Truth,
    recipe: Recipe,
    progress: Callable[[EpochLog], None] | None = None,
) -> tuple[HeadWeights, list[EpochLog]]:
    """Train a head; `truth` is that of `valid`. Deterministic for one seed, machine and set of versions."""
    logs: list[EpochLog] = []

    def tell(entry: EpochLog) -> None:
        logs.append(entry)
        if progress is not None:
            progress(entry)

    heads = [_fit_one(train, valid, truth, recipe, index, tell) for index in range(recipe.heads)]
    return HeadWeights.folded(heads), logs


def _fit_one(
    train: Example,
    valid: Example,
    truth: metrics.Truth,
    recipe: Recipe,
    index: int,
    tell: Callable[[EpochLog], None],
) -> HeadWeights:
    """The head at `index` of the recipe's; the first has the recipe's own seed."""
    seed = recipe.seed + 1000 * index
    mx.random.seed(seed)
    rng = np.random.default_rng(seed)
    mean, std = train.x.mean(axis=0), np.maximum(train.x.std(axis=0), LEAST_STD)
    x, y, weight = mx.array((train.x - mean) / std), mx.array(train.y), mx.array(train.weight)
    x_valid = mx.array((valid.x - mean) / std)

    head = Head(train.x.shape[1], recipe.hidden, train.y.shape[1], recipe.dropout)
    steps = max(1, len(train.x) // recipe.batch_size) * recipe.epochs
    optimizer = optim.AdamW(
        learning_rate=optim.cosine_decay(recipe.learning_rate, steps), weight_decay=recipe.weight_decay
    )
    optimizer.init(head.trainable_parameters())
    state = [head.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(bx: mx.array, by: mx.array, bw: mx.array) -> mx.array:
        loss, grads = nn.value_and_grad(head, lambda model: loss_of(model(bx), by, bw, recipe))(head)
        optimizer.update(head, grads)
        mean: mx.array = loss
        return mean

    best: tuple[tuple[float, float], HeadWeights] | None = None
    for epoch in range(1, recipe.epochs + 1):
        head.train()
        order = rng.permutation(len(train.x))
        losses = []
        for start in range(0, len(order) - len(order) % recipe.batch_size or len(order), recipe.batch_size):
            rows = mx.array(order[start : start + recipe.batch_size])
            losses.append(step(x[rows], y[rows], weight[rows]))
            mx.eval(losses[-1], state)
        head.eval()
        logits = np.array(head(x_valid))
        score = metrics.summary(logits.astype(np.float64), truth)["macro_f1_lenient"]
        valid_loss = float(loss_of(mx.array(logits), mx.array(valid.y), mx.array(valid.weight), recipe))
        if best is None or (score, -valid_loss) > best[0]:
            best = ((score, -valid_loss), head.export(mean, std))
        tell(EpochLog(index + 1, epoch, float(np.mean([float(loss) for loss in losses])), score))
    if best is None:  # unreachable: epochs >= 1
        raise ConfigError("no epoch was trained")
    return best[1]
