"""MiniLM on ONNX Runtime: the fast runtime on hosts without a GPU that mlx can use. Never imports mlx."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from safetensors import safe_open

from mlx_router.encoder.vocabulary import Vocabulary
from mlx_router.encoder.weights import EncoderFiles
from mlx_router.files import sha256_file, write_json

log = logging.getLogger(__name__)

GRAPH_FORMAT = 2  # part of the cache key: raise it when onnx_graph.py changes what it builds
GRAPH, WEIGHTS, DIGESTS = "graph.onnx", "weights.bin", "sha256.json"


class OnnxRuntime:
    """One session whose threads sleep between runs; the graph is built once and cached by digest."""

    name = "onnx"
    dtype = "float32"
    batch_tokens = 512  # measured: 1024 takes 5 % more CPU, no limit 20 % more and 100 MB at T = 256

    def __init__(self, files: EncoderFiles, *, threads: int = 0, cache: Path | None = None) -> None:
        self._vocabulary = Vocabulary(files.model)
        self._session = ort.InferenceSession(
            _graph_of(files, cache), _options(threads), providers=["CPUExecutionProvider"]
        )

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
    # Threads spin between the operators of one run (a quarter faster up to 32 tokens), and sleep when it ends.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_cpu_mem_arena = False  # the arena keeps the largest batch's memory for good
    options.log_severity_level = 3
    return options


def _graph(model: Path) -> Any:
    from mlx_router.encoder.onnx_graph import build_graph

    with safe_open(model, framework="np") as file:
        names = [name for name in file.keys() if "word_embeddings" not in name]  # noqa: SIM118  not a dict
        return build_graph({name: file.get_tensor(name) for name in names})


def _graph_of(files: EncoderFiles, cache: Path | None) -> str | bytes:
    """A path in the cache; the graph itself where there is no cache, or it can neither be read nor written."""
    if cache is not None:
        try:
            return _cached_graph(files, cache)
        except OSError as error:
            log.warning("event=graph_not_kept folder=%s reason=%r: it is built on every start", cache, str(error))
    serialized: bytes = _graph(files.model).SerializeToString()
    return serialized


def _cached_graph(files: EncoderFiles, cache: Path) -> str:
    """Path of the graph, built on first use and again where a file of it is damaged.

    Its weights are a file of their own, which ONNX Runtime maps: a session then starts in half the time and keeps
    20 MB less than with one parsed file. The folder appears in one rename; of two builders the first one wins.
    """
    folder = cache / f"minilm-{files.model_sha256[:16]}-{GRAPH_FORMAT}"
    if not _intact(folder):
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=cache))
        try:
            _write_graph(files.model, draft)
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # somebody else was faster
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        if not _intact(folder):
            raise OSError(f"{folder} is damaged and stays")
    return str(folder / GRAPH)


def _write_graph(model: Path, folder: Path) -> None:
    import onnx

    onnx.save_model(
        _graph(model),
        str(folder / GRAPH),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS,
        size_threshold=4096,
    )
    write_json(folder / DIGESTS, {name: sha256_file(folder / name) for name in (GRAPH, WEIGHTS)})


def _intact(folder: Path) -> bool:
    """Whether every file is there as it was written; 30 ms for 42 MB, which loading then finds in the page cache."""
    try:
        wanted = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        return all(sha256_file(folder / name) == wanted[name] for name in (GRAPH, WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError):
        return False
