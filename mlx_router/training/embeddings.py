"""Encode once: embeddings on disk, keyed by encoder digest, arithmetic and text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlx_router.encoder.encoder import DIM, Encoder
from mlx_router.files import replacing


class EmbeddingCache:
    """One .npz a pair of encoder and arithmetic under `$MLX_ROUTER_HOME/cache/embeddings`.

    The arithmetic is part of the key so that a run never mixes vectors that differ in the seventh digit (in the third,
    where one is bfloat16), which would make the hash of a trained head depend on what was cached.
    """

    def __init__(self, directory: Path, encoder: Encoder) -> None:
        self.encoder = encoder
        self.path = directory / f"{encoder.digest[:16]}-{encoder.arithmetic}.npz"

    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> npt.NDArray[np.float32]:
        """n texts -> (n, 384) float32; only the texts never seen before are encoded."""
        known = self._load()
        keys = [_key(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if progress is not None:
            progress(len(texts) - len(missing))
        if missing:
            vectors = self.encoder.encode(list(missing.values()), progress)
            known.update(zip(missing, vectors, strict=True))
            self._save(known)
        return np.stack([known[key] for key in keys]) if keys else np.zeros((0, DIM), dtype=np.float32)

    def _load(self) -> dict[bytes, npt.NDArray[np.float32]]:
        try:
            with self.path.open("rb") as file, np.load(file) as stored:
                return dict(zip((bytes(key) for key in stored["keys"]), stored["vectors"], strict=True))
        except Exception:  # absent or damaged, for which numpy and zipfile raise a dozen classes: encode again
            return {}

    def _save(self, known: dict[bytes, npt.NDArray[np.float32]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        keys = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(len(known), -1)
        with replacing(self.path) as draft, draft.open("wb") as file:
            np.savez(file, keys=keys, vectors=np.stack(list(known.values())))


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
