"""Arrays that mlx computes with and numpy writes in place.

An update of one slot through mlx is a graph node that copies the whole bank unless nobody else holds it. The memory
of an evaluated mlx array is the host's on CPU and Apple silicon alike, so a slot is written through a view of it: one
memory copy, no graph, and nothing that a step in flight reads is moved.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlx_router.compute import mx
from mlx_router.lora.tensors import Array

NUMPY_DTYPES: dict[mx.Dtype, Any] = {mx.float32: np.float32, mx.float16: np.float16, mx.bfloat16: np.uint16}


class SlotMemory:
    """`array` for mlx and `view` for numpy: the same zeros (bfloat16 is viewed as its bits)."""

    def __init__(self, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
        self.array = mx.zeros(shape, dtype=dtype)
        mx.eval(self.array)
        self._bits = self.array.view(mx.uint16) if dtype == mx.bfloat16 else self.array
        mx.eval(self._bits)
        self.view: Array = _share(self._bits)
        if not self.view.flags.writeable or self.view.shape != shape:
            raise RuntimeError(
                f"mlx exports {dtype} arrays as {self.view.dtype} {self.view.shape}, not writeable in place"
            )


def to_host(array: Array, dtype: mx.Dtype) -> Array:
    """An adapter's matrix in the dtype that a SlotMemory's view has."""
    if dtype == mx.bfloat16:
        rounded = mx.array(array.astype(np.float32, copy=False)).astype(mx.bfloat16).view(mx.uint16)
        mx.eval(rounded)
        return _share(rounded)
    return array  # numpy converts while it copies


def _share(array: Any) -> Array:
    """A numpy view of an evaluated, contiguous mlx array's own memory."""
    return np.asarray(memoryview(array))
