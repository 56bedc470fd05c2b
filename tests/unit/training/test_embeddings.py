"""The embedding cache: one file an encoder and its arithmetic, and a damaged one is made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_router.encoder.encoder import DIM, load_encoder
from mlx_router.encoder.weights import find_encoder
from mlx_router.training.embeddings import EmbeddingCache


@dataclass
class FakeEncoder:
    """Vectors that tell their text, and a count of what was encoded."""

    digest: str = "d" * 64
    arithmetic: str = "fake"
    encoded: int = 0

    def encode(self, texts: Sequence[str], progress: Any = None) -> np.ndarray:
        self.encoded += len(texts)
        return np.stack([np.full(DIM, len(text), dtype=np.float32) for text in texts])


TEXTS = ["a", "bb", "ccc"]


def embed(folder: Path) -> tuple[list[float], int]:
    encoder: Any = FakeEncoder()
    return EmbeddingCache(folder, encoder).embed(TEXTS)[:, 0].tolist(), encoder.encoded


def test_a_text_is_encoded_once(tmp_path: Path) -> None:
    assert embed(tmp_path) == ([1, 2, 3], 3)
    assert embed(tmp_path) == ([1, 2, 3], 0)


def test_a_damaged_file_is_made_again_wherever_the_damage_is(tmp_path: Path) -> None:
    embed(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damage in [*range(0, 300), *range(300, len(whole) - 300, 97), *range(len(whole) - 300, len(whole))]:
        data = bytearray(whole)
        data[damage] ^= 1 << damage % 8
        path.write_bytes(data)
        assert embed(tmp_path)[0] == [1, 2, 3]
    path.write_bytes(whole[: len(whole) // 2])
    assert embed(tmp_path) == ([1, 2, 3], 3)


def test_an_encoder_of_less_precision_has_vectors_of_its_own(tmp_path: Path) -> None:
    full, half = (load_encoder(find_encoder(), runtime="mlx", dtype=dtype) for dtype in ("float32", "bfloat16"))
    first = EmbeddingCache(tmp_path, full).embed(["a PLL that does not lock"])
    second = EmbeddingCache(tmp_path, half).embed(["a PLL that does not lock"])
    assert not np.array_equal(first, second)
    assert np.array_equal(second, half.encode(["a PLL that does not lock"]))
