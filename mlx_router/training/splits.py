"""The splits as files, for people and other programs; `router train` makes the same ones in memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlx_router.files import write_atomic
from mlx_router.training.dataset import Dataset


def write_splits(data: Dataset, directory: Path) -> dict[str, int]:
    """Write train.jsonl, valid.jsonl and test.jsonl; returns their rows."""
    directory.mkdir(parents=True, exist_ok=True)
    parts = {"train": data.split.train, "valid": data.split.valid, "test": data.split.test}
    for name, index in parts.items():
        write_atomic(directory / f"{name}.jsonl", _lines(data, index))
    return {name: len(index) for name, index in parts.items()}


def _lines(data: Dataset, index: npt.NDArray[np.intp]) -> str:
    rows = (data.rows[i] for i in index)
    values = ({"text": r.text, "labels": list(r.labels), "lang": r.lang, "origin": r.origin} for r in rows)
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
