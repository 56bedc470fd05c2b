"""Texts in, unit vectors out, whatever runs the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mlx_router.encoder import batching
from mlx_router.encoder.tokenizer import Tokenizer
from mlx_router.encoder.weights import EncoderFiles
from mlx_router.errors import EncoderError

DIM = 384
Embeddings = npt.NDArray[np.float32]


class Runtime(Protocol):
    """What runs MiniLM: token ids (B, T) int32 and lengths (B,) int32 -> (B, 384) float32, L2-normalised."""

    name: str
    dtype: str  # of its weights and sums
    batch_tokens: int  # padded tokens of a batch at most

    def __call__(self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> Embeddings: ...


class Encoder:
    """Tokenizer and runtime together; call it from the one thread that made it."""

    def __init__(self, files: EncoderFiles, runtime: Runtime, batch: int = batching.BATCH) -> None:
        self.files = files
        self.runtime = runtime
        self.batch = batch
        self.tokenizer = Tokenizer(files.tokenizer)

    @property
    def digest(self) -> str:
        """Identifies weights and tokenizer, not the runtime: both runtimes agree to 1e-5."""
        return self.files.digest

    @property
    def arithmetic(self) -> str:
        """What a vector's last digits depend on: the runtime, and its dtype where that is not float32."""
        name, dtype = self.runtime.name, self.runtime.dtype
        return name if dtype == "float32" else f"{name}-{dtype}"

    def encode(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> Embeddings:
        """Embed texts: n strings -> (n, 384) float32 in input order; `progress` is told the texts of each batch."""
        out = np.zeros((len(texts), DIM), dtype=np.float32)
        if not texts:
            return out
        rows = self.tokenizer.encode(texts)
        for index in batching.by_length(rows, self.batch, self.runtime.batch_tokens):
            out[index] = self.runtime(*batching.pad([rows[i] for i in index]))
            if progress is not None:
                progress(len(index))
        return out


def choose_runtime(wanted: str = "auto") -> str:
    """Resolve "auto": mlx where it has a GPU, else onnx where it is installed, else mlx."""
    if wanted != "auto":
        return wanted
    import importlib.util
    import platform

    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "mlx"
    return "onnx" if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx") else "mlx"


def load_encoder(
    files: EncoderFiles,
    *,
    runtime: str = "auto",
    dtype: str = "float32",
    threads: int = 0,
    cache: Path | None = None,
) -> Encoder:
    """Build an encoder on the chosen runtime.

    Args:
        dtype: float32, float16 or bfloat16; the last two on mlx only.
        threads: CPU threads of the onnx runtime, 0 for every core.
        cache: where the onnx graph built from `files` is kept.
    """
    chosen = choose_runtime(runtime)
    if chosen == "mlx":
        from mlx_router.encoder.mlx_runtime import MlxRuntime

        return Encoder(files, MlxRuntime(files.model, dtype))
    if chosen != "onnx":
        raise EncoderError(f"encoder runtime must be auto, mlx or onnx, got {runtime!r}")
    if dtype != "float32":
        raise EncoderError(f"the onnx runtime computes in float32, got dtype {dtype!r}; use --runtime mlx")
    try:
        from mlx_router.encoder.onnx_runtime import OnnxRuntime
    except ImportError as error:
        raise EncoderError(f"the onnx runtime needs `pip install mlx-router[onnx]`: {error}") from error
    return Encoder(files, OnnxRuntime(files, threads=threads, cache=cache))
