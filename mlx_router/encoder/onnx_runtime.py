"""MiniLM on ONNX Runtime: the fast runtime on hosts without a GPU that mlx can use. Never imports mlx."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from safetensors import safe_open

from mlx_router.encoder.vocabulary import Vocabulary
from mlx_router.encoder.weights import EncoderFiles


class OnnxRuntime:
    """One session without spinning threads; the graph is built once and cached by digest."""

    name = "onnx"

    def __init__(self, files: EncoderFiles, *, threads: int = 0, cache: Path | None = None) -> None:
        self._vocabulary = Vocabulary(files.model)
        graph = _cached_graph(files, cache) if cache is not None else _serialized(files.model)
        self._session = ort.InferenceSession(graph, _options(threads), providers=["CPUExecutionProvider"])

    def __call__(self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """(B, T), (B,) -> (B, 384) float32, L2-normalised."""
        mask = (np.arange(ids.shape[1])[None, :] < lengths[:, None]).astype(np.float32)
        feeds = {"embedded": self._vocabulary(ids), "mask": mask, "lengths": lengths}
        pooled: npt.NDArray[np.float32] = self._session.run(["pooled"], feeds)[0]
        return pooled


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not steal cores
    options.enable_cpu_mem_arena = False  # the arena keeps the largest batch's memory for good
    options.log_severity_level = 3
    return options


def _serialized(model: Path) -> bytes:
    from mlx_router.encoder.onnx_graph import build_graph

    with safe_open(model, framework="np") as file:
        names = [name for name in file.keys() if "word_embeddings" not in name]  # noqa: SIM118  not a dict
        graph: bytes = build_graph({name: file.get_tensor(name) for name in names}).SerializeToString()
    return graph


def _cached_graph(files: EncoderFiles, cache: Path) -> str:
    """Path of the serialized graph, written whole on first use."""
    path = cache / f"minilm-{files.model_sha256[:16]}.onnx"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_bytes(_serialized(files.model))
        draft.replace(path)
    return str(path)
