"""Near-duplicates: texts that share most of their characters or most of their meaning."""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

NGRAM = 4
BUCKETS = 2**14
CHARACTER_LIMIT = 0.7  # cosine of binary 4-gram vectors
EMBEDDING_LIMIT = 0.95  # cosine of sentence embeddings
_BLOCK = 512


def fold(text: str) -> str:
    """Lower case without accents, digits made alike, blanks and punctuation squeezed."""
    plain = unicodedata.normalize("NFKD", text.lower())
    kept = (
        "0" if char.isdigit() else char if char.isalnum() else " " for char in plain if not unicodedata.combining(char)
    )
    return " ".join("".join(kept).split())


def ngram_vectors(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Unit vectors of hashed character 4-grams: n texts -> (n, BUCKETS) float32."""
    out = np.zeros((len(texts), BUCKETS), dtype=np.float32)
    for index, text in enumerate(texts):
        folded = f" {fold(text)} "
        grams = {folded[i : i + NGRAM] for i in range(max(1, len(folded) - NGRAM + 1))}
        out[index, [zlib.crc32(gram.encode()) % BUCKETS for gram in grams]] = 1.0
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6)


def similar_pairs(vectors: npt.NDArray[np.float32], limit: float) -> Iterator[tuple[int, int, float]]:
    """Pairs i < j of unit vectors (n, D) whose cosine reaches the limit, block by block."""
    for start in range(0, len(vectors), _BLOCK):
        cosines = vectors[start : start + _BLOCK] @ vectors[start:].T
        rows, columns = np.nonzero(np.triu(cosines, k=1) >= limit)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            yield start + row, start + column, float(cosines[row, column])


def near_duplicates(
    texts: Sequence[str], embeddings: npt.NDArray[np.float32] | None = None
) -> list[tuple[int, int, float, str]]:
    """Pairs of near-duplicate texts: (i, j, cosine, "characters" or "meaning")."""
    pairs = [(i, j, value, "characters") for i, j, value in similar_pairs(ngram_vectors(texts), CHARACTER_LIMIT)]
    if embeddings is not None:
        seen = {(i, j) for i, j, _, _ in pairs}
        pairs += [
            (i, j, value, "meaning") for i, j, value in similar_pairs(embeddings, EMBEDDING_LIMIT) if (i, j) not in seen
        ]
    return pairs


def groups(count: int, pairs: Sequence[tuple[int, int, float, str]]) -> npt.NDArray[np.intp]:
    """Connected components: the group number of each of `count` texts, by union-find."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j, _, _ in pairs:
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(count)], dtype=np.intp)
