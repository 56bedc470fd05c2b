"""Fits the lexical model: ridge regression, so there are no epochs to choose.

With n rows far fewer than n-grams, the dual is cheap: solve (F Fᵀ + λ I) A = Y, then W = Fᵀ A. Conjugate gradients
need F alone: memory and time grow with the rows, where the n x n matrix F Fᵀ takes 6 GB at 27,000 rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse

from mlx_router.errors import VersionCorrupt
from mlx_router.files import replacing
from mlx_router.head.lexical import BUCKETS, NGRAMS, Lexical, hashed_ngrams, load_lexical

RIDGE = 0.5
MIN_ROWS = 2  # an n-gram of one row tells that row from others, not one label from another
MAX_SHARE = 0.02  # an n-gram of more rows than this, or than a label has, says little and costs most
IDF_POWER = 1.5
TOLERANCE = 3e-3  # residual over right side; scores differ from those of 1e-4 by 0.003 at most, 2 of 7,900 labels do
MAX_STEPS = 300
SHARES = 2  # of the labels, solved side by side; a constant, so that the result is the same on any number of cores

FloatArray = npt.NDArray[np.float32]


def fit_lexical(counts: scipy.sparse.csr_matrix, y: npt.NDArray[np.float32]) -> Lexical:
    """n-gram counts (n, BUCKETS) of n texts and their multi-label targets (n, C) -> a lexical model.

    The products gather rows of a matrix that no cache holds, so frequent n-grams stand together: a third less time.
    """
    rows, classes = y.shape
    rows_with = np.bincount(counts.indices, minlength=BUCKETS)
    most = max(MIN_ROWS, MAX_SHARE * rows, rows / classes)
    kept = np.flatnonzero((rows_with >= MIN_ROWS) & (rows_with <= most))
    kept = kept[np.argsort(-rows_with[kept], kind="stable")]
    idf = ((np.log((1 + rows) / (1 + rows_with[kept])) + 1) ** IDF_POWER).astype(np.float32)
    features = counts[:, kept] @ scipy.sparse.diags(idf)
    norms = np.maximum(scipy.sparse.linalg.norm(features, axis=1), 1e-6)
    features = (scipy.sparse.diags((1 / norms).astype(np.float32)) @ features).tocsr()
    turned = features.T.tocsr()
    shares = np.array_split(y - y.mean(axis=0), min(SHARES, classes), axis=1)
    with ThreadPoolExecutor() as pool:  # labels do not depend on each other, and scipy lets the lock go
        dual = np.concatenate(list(pool.map(partial(solve_dual, features, turned), shares)), axis=1)
    weights = turned @ dual
    order = np.argsort(kept)
    return Lexical.rounded(kept[order].astype(np.uint32), idf[order], np.asarray(weights[order], dtype=np.float32))


def solve_dual(features: scipy.sparse.csr_matrix, turned: scipy.sparse.csr_matrix, y: FloatArray) -> FloatArray:
    """(F Fᵀ + RIDGE I) A = y by conjugate gradients, each column of y (n, C) alone. Source: Hestenes 1952.

    Args:
        turned: Fᵀ with its rows in order, made once for all columns.
    """
    dual = np.zeros_like(y)
    residual = np.array(y, order="C")
    direction = residual.copy()
    power = (residual**2).sum(axis=0)
    goal = TOLERANCE**2 * power
    for _ in range(MAX_STEPS):
        if (power <= goal).all():
            break
        image = features @ (turned @ direction) + RIDGE * direction
        step = power / np.maximum((direction * image).sum(axis=0), 1e-30)
        dual += step * direction
        residual -= step * image
        before, power = power, (residual**2).sum(axis=0)
        direction = residual + power / np.maximum(before, 1e-30) * direction
    return dual


class LexicalFits:
    """Models of parts of the same rows: n-grams are counted once, and what was fitted before is read again."""

    def __init__(self, texts: Sequence[str], y: npt.NDArray[np.float32], directory: Path) -> None:
        self._texts = texts
        self._y = y
        self._directory = directory

    def fit(self, index: npt.NDArray[np.intp]) -> Lexical:
        """The model of the rows at `index`."""
        y = self._y[index]
        digest = hashlib.sha256(repr((RIDGE, MIN_ROWS, MAX_SHARE, IDF_POWER, TOLERANCE, NGRAMS, BUCKETS)).encode())
        digest.update("\0".join(self._texts[i] for i in index).encode("utf-8", "surrogatepass"))
        digest.update(np.ascontiguousarray(y).tobytes())
        path = self._directory / f"{digest.hexdigest()[:32]}.safetensors"
        if path.is_file():
            with suppress(VersionCorrupt):  # a damaged file is fitted again
                return load_lexical(path, y.shape[1])
        lexical = fit_lexical(self._counts[index], y)
        self._directory.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            lexical.save(draft)
        return lexical

    @cached_property
    def _counts(self) -> scipy.sparse.csr_matrix:
        return count_ngrams(self._texts)


def count_ngrams(texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    """Damped n-gram counts of n texts: (n, BUCKETS)."""
    found = [hashed_ngrams(text) for text in texts]
    pointers = np.concatenate([[0], np.cumsum([len(buckets) for buckets, _ in found])])
    buckets = np.concatenate([buckets for buckets, _ in found]).astype(np.int32)
    values = np.concatenate([value for _, value in found])
    return scipy.sparse.csr_matrix((values, buckets, pointers), shape=(len(texts), BUCKETS))
