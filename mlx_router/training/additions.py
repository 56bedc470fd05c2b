"""Hand-written rows join the corpus: all of a file or none of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from mlx_router.errors import CorpusError
from mlx_router.files import write_atomic
from mlx_router.head.lexical import fold
from mlx_router.training.corpus import Row, parse_row, read_corpus


def add_rows(additions: Path, directory: Path) -> dict[str, int]:
    """Append rows to the files of their first labels; returns rows added per label.

    Texts that the corpus has already are passed over, so that running twice changes nothing. Raises CorpusError
    naming every bad row; then no file was touched.
    """
    corpus = read_corpus(directory)
    known = {fold(row.text) for row in corpus.rows}
    fresh: list[Row] = []
    problems: list[str] = []
    for number, line in enumerate(additions.read_bytes().splitlines(), start=1):
        row, found = parse_row(line, f"{additions.name}:{number}", _stem(line), corpus.labels)
        problems += [f"{additions.name}:{number}: {problem}" for problem in found]
        if row is not None and fold(row.text) not in known:
            known.add(fold(row.text))
            fresh.append(row)
    if problems:
        raise CorpusError.from_problems(f"{additions}: bad rows, nothing was written", problems)
    for label in sorted({row.label for row in fresh}):
        path = directory / f"{label}.jsonl"
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            text += "\n"
        write_atomic(path, text + "".join(_line(row) for row in fresh if row.label == label))
    return dict(Counter(row.label for row in fresh))


def _stem(line: bytes) -> str:
    """The file that a row belongs to; a broken row is reported by the parser."""
    try:
        return str(json.loads(line)["labels"][0])
    except (ValueError, KeyError, IndexError, TypeError):
        return "_outside"


def _line(row: Row) -> str:
    value = {"text": row.text, "labels": list(row.labels), "lang": row.lang, "origin": row.origin}
    return json.dumps(value, ensure_ascii=False) + "\n"
