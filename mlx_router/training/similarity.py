"""Near-duplicates: texts that share most of their characters or most of their meaning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from mlx_router.head.lexical import fold

NGRAM = 4
CHARACTER_LIMIT = 0.55  # Jaccard of character 4-gram sets
MEANING_LIMIT = 0.95  # cosine of sentence embeddings
CANDIDATE = 0.7  # cosine above which two texts are compared by their characters
_BLOCK = 512
_AXES = 160  # of embeddings of 384: 96 leave a hundred times as many candidates, 384 take twice the time
_ROUNDING = 1e-4
_PAIRS = 2**14  # candidates at once: 50 MB of vectors

Pair = tuple[int, int, float, str]


def ngrams(text: str) -> frozenset[str]:
    """Character 4-grams of a folded text; the text itself where it is shorter."""
    folded = fold(text)
    return frozenset(folded[i : i + NGRAM] for i in range(max(1, len(folded) - NGRAM + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared over all, in [0, 1]."""
    return len(a & b) / max(len(a | b), 1)


def similar_pairs(vectors: npt.NDArray[np.float32], limit: float) -> Iterator[tuple[int, int, float]]:
    """Pairs i < j of unit vectors (n, D) whose cosine reaches the limit, block by block."""
    bounds = _bounding(vectors)
    for start in range(0, len(vectors), _BLOCK):
        products = bounds[start : start + _BLOCK] @ bounds[start:].T
        rows, columns = np.divmod(np.flatnonzero(products >= limit - _ROUNDING), products.shape[1])
        later = rows < columns
        rows, columns = rows[later] + start, columns[later] + start
        for part in range(0, len(rows), _PAIRS):
            some, others = rows[part : part + _PAIRS], columns[part : part + _PAIRS]
            cosines = np.einsum("ij,ij->i", vectors[some], vectors[others])
            near = cosines >= limit
            yield from zip(some[near].tolist(), others[near].tolist(), cosines[near].tolist(), strict=True)


def _bounding(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Vectors (n, 161) whose products are at least those of the unit vectors (n, D), and take half the time.

    They are the coordinates on the principal axes and the length of the rest: by Cauchy and Schwarz, the product of two
    rests is at most that of their lengths.
    """
    _, axes = np.linalg.eigh(vectors.T @ vectors)
    turned = vectors @ axes[:, ::-1][:, :_AXES]
    rest = np.sqrt(np.maximum(1.0 - (turned**2).sum(axis=1, keepdims=True), 0.0))
    return np.concatenate([turned, rest], axis=1)


def near_duplicates(texts: Sequence[str], embeddings: npt.NDArray[np.float32]) -> list[Pair]:
    """Pairs of near-duplicates: (i, j, similarity, "meaning" or "characters").

    Texts that share most characters lie near each other in the embedding space too, so only such candidates are
    compared character by character.
    """
    grams = cache(lambda index: ngrams(texts[index]))
    pairs: list[Pair] = []
    for i, j, cosine in similar_pairs(embeddings, CANDIDATE):
        if cosine >= MEANING_LIMIT:
            pairs.append((i, j, cosine, "meaning"))
        elif (shared := jaccard(grams(i), grams(j))) >= CHARACTER_LIMIT:
            pairs.append((i, j, shared, "characters"))
    return pairs


def groups(count: int, pairs: Sequence[Pair]) -> npt.NDArray[np.intp]:
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
