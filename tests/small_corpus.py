"""A corpus of four labels cut from the shipped one: big enough to train on, small enough for a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mlx_router import resources

LABELS = ("kicad-pcb", "rust", "sql", "general")
ROWS = 60


def write_small_corpus(folder: Path, rows: int = ROWS) -> Path:
    """Copy the first rows of a few labels into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for label in (*LABELS, "_outside"):
        lines = (resources.corpus_dir() / f"{label}.jsonl").read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not _mentions_other_labels(line)]
        (folder / f"{label}.jsonl").write_text("\n".join(kept[:rows]) + "\n", encoding="utf-8")
    return folder


def _mentions_other_labels(line: str) -> bool:
    return any(label not in LABELS for label in json.loads(line)["labels"])


def copy_tree(source: Path, target: Path) -> Path:
    """A private copy of a home that another test prepared."""
    shutil.copytree(source, target)
    return target
