"""MiniLM's lookup tables, read from the checkpoint through the page cache instead of a resident copy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt


class Vocabulary:
    """Word + position + token type 0: ids (B, T) int32 -> (B, T, 384) float32, before LayerNorm."""

    def __init__(self, model: Path) -> None:
        self._words = map_tensor(model, "embeddings.word_embeddings.weight")
        position = map_tensor(model, "embeddings.position_embeddings.weight")
        kind = map_tensor(model, "embeddings.token_type_embeddings.weight")
        self._rest: npt.NDArray[np.float32] = np.asarray(position) + np.asarray(kind[0])

    def __call__(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        embedded: npt.NDArray[np.float32] = self._words[ids] + self._rest[: ids.shape[1]]
        return embedded


def map_tensor(path: Path, name: str) -> npt.NDArray[np.float32]:
    """Memory-map one float32 tensor of a safetensors file.

    Source of the layout: safetensors README (8 bytes of header length, JSON header, data).
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    if entry["dtype"] != "F32":
        raise ValueError(f"{path}: {name} is {entry['dtype']}, expected F32")
    start = 8 + length + entry["data_offsets"][0]
    mapped: npt.NDArray[np.float32] = np.memmap(path, np.float32, "r", start, tuple(entry["shape"]))
    return mapped.view(np.ndarray)
