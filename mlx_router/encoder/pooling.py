"""From token vectors to one unit vector a text."""

from __future__ import annotations

from mlx_router.compute import mx


def mean_pool(hidden: mx.array, mask: mx.array) -> mx.array:
    """Average token vectors, ignoring padding: (B, T, D), (B, T) -> (B, D) float32.

    Source: sentence-transformers 1_Pooling/config.json, pooling_mode_mean_tokens.
    """
    weights = mask[..., None].astype(mx.float32)
    return (hidden.astype(mx.float32) * weights).sum(axis=1) / mx.maximum(weights.sum(axis=1), 1.0)


def l2_normalize(vectors: mx.array) -> mx.array:
    """Scale rows to length 1: (B, D) -> (B, D). Source: sentence-transformers modules.json, Normalize."""
    return vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
