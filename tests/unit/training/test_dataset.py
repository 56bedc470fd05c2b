from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mlx_router.errors import CorpusError
from mlx_router.training.corpus import Corpus, Row
from mlx_router.training.dataset import build_dataset


class Vectors:
    """Stands in for the embedding cache: a vector a text, drawn from its first word."""

    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> npt.NDArray[np.float32]:
        out = np.zeros((len(texts), 64), dtype=np.float32)
        out[np.arange(len(texts)), [int(text.split()[0]) % 64 for text in texts]] = 1.0
        return out


def _corpus(texts: Sequence[str], outside: Sequence[str] = ()) -> Corpus:
    rows = [Row(text, ("a",), "en", "", "") for text in texts]
    rows += [Row(text, (), "en", "", "") for text in outside]
    return Corpus(tuple(rows), ("a", "general"), (Path("a.jsonl"),), ("",))


def _build(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr("mlx_router.training.dataset.check_sizes", lambda rows, labels: None)
    return build_dataset(corpus, Vectors(), seed=0, fallback="general")  # type: ignore[arg-type]


def test_outside_rows_point_at_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _build(_corpus([f"{i} word" for i in range(30)], [f"{i} other" for i in range(40, 50)]), monkeypatch)
    assert data.y[-1].tolist() == [0.0, 1.0]  # type: ignore[attr-defined]
    assert data.leaks == 0  # type: ignore[attr-defined]


def test_rows_that_are_all_alike_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CorpusError, match="the validation and test part would be empty"):
        _build(_corpus([f"1 word {i}" for i in range(30)]), monkeypatch)
