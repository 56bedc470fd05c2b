"""MiniLM on MLX: the reference runtime, and the fast one on Apple silicon."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlx_router.compute import mx
from mlx_router.encoder.bert import Bert
from mlx_router.encoder.pooling import l2_normalize, mean_pool
from mlx_router.errors import EncoderError

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


def load_bert(path: Path, dtype: str = "float32") -> Bert:
    """Read model.safetensors into a Bert with evaluated weights.

    Raises EncoderError for an unknown dtype, and for missing or unexpected tensors.
    """
    if dtype not in DTYPES:
        raise EncoderError(f"encoder dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    tensors = mx.load(str(path))
    assert isinstance(tensors, dict)
    weights = [(name, array.astype(DTYPES[dtype])) for name, array in tensors.items() if name not in _UNUSED]
    model = Bert()
    try:
        model.load_weights(weights)
    except ValueError as error:
        raise EncoderError(f"{path} is not a MiniLM checkpoint: {error}") from error
    mx.eval(model.parameters())
    return model


class MlxRuntime:
    """Runs on the default MLX device; arrays stay with the thread that called it."""

    name = "mlx"
    batch_tokens = 8192  # a GPU wants large batches: 32 prompts of a whole window

    def __init__(self, path: Path, dtype: str = "float32") -> None:
        self.dtype = dtype
        self.model = load_bert(path, dtype)

    def __call__(self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """(B, T), (B,) -> (B, 384) float32, L2-normalised."""
        mask = mx.arange(ids.shape[1])[None, :] < mx.array(lengths)[:, None]
        hidden = self.model(mx.array(ids), mask)
        return np.array(l2_normalize(mean_pool(hidden, mask)), copy=False)
