"""What is in a corpus, label by label."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_router.head.lexical import fold
from mlx_router.training.corpus import OUTSIDE, Corpus


def label_stats(corpus: Corpus, embeddings: npt.NDArray[np.float32]) -> dict[str, dict[str, Any]]:
    """Figures per label; the nearest other label is by cosine of mean embeddings (n, 384)."""
    names = [*corpus.labels, *([OUTSIDE] if any(not row.labels for row in corpus.rows) else [])]
    of = np.array([row.label for row in corpus.rows])
    centres = np.stack([embeddings[of == name].mean(axis=0) for name in names])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    cosines = centres @ centres.T - 2 * np.eye(len(names))
    out = {}
    for index, name in enumerate(names):
        rows = [row for row in corpus.rows if row.label == name]
        words = [fold(row.text).split() for row in rows]
        quartiles = np.percentile([len(row.text.split()) for row in rows], [25, 50, 75])
        langs = [row.lang for row in rows]
        out[name] = {
            "rows": len(rows),
            "en": langs.count("en"),
            "fr": langs.count("fr"),
            "other": len(langs) - langs.count("en") - langs.count("fr"),
            "words q1/median/q3": "/".join(f"{value:.0f}" for value in quartiles),
            "1-grams": len({word for found in words for word in found}),
            "2-grams": len({pair for found in words for pair in pairwise(found)}),
            "nearest label": names[int(cosines[index].argmax())],
            "cosine": round(float(cosines[index].max()), 3),
        }
    return out
