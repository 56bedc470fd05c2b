from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_router.errors import CorpusError
from mlx_router.training.additions import add_rows
from mlx_router.training.corpus import read_corpus
from tests.small_corpus import write_small_corpus


def _file(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _row(text: str, label: str) -> dict[str, object]:
    return {"text": text, "labels": [label], "lang": "mixed", "origin": "written"}


def test_rows_join_the_file_of_their_label_once(tmp_path: Path) -> None:
    corpus = write_small_corpus(tmp_path / "corpus")
    additions = _file(
        tmp_path / "more.jsonl", _row("my borrow est moved, pourquoi", "rust"), _row("le join lent", "sql")
    )
    before = len(read_corpus(corpus).rows)
    assert add_rows(additions, corpus) == {"rust": 1, "sql": 1}
    assert len(read_corpus(corpus).rows) == before + 2
    assert add_rows(additions, corpus) == {}


def test_a_file_without_a_final_newline_keeps_its_last_row(tmp_path: Path) -> None:
    corpus = write_small_corpus(tmp_path / "corpus")
    rust = corpus / "rust.jsonl"
    rust.write_text(rust.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")
    before = len(read_corpus(corpus).rows)
    add_rows(_file(tmp_path / "more.jsonl", _row("my borrow est moved, pourquoi", "rust")), corpus)
    assert len(read_corpus(corpus).rows) == before + 1


def test_one_bad_row_and_nothing_is_written(tmp_path: Path) -> None:
    corpus = write_small_corpus(tmp_path / "corpus")
    before = {path.name: path.read_bytes() for path in corpus.iterdir()}
    additions = _file(tmp_path / "more.jsonl", _row("fine", "rust"), _row("x", "cobol"), {"text": 1})
    with pytest.raises(CorpusError) as error:
        add_rows(additions, corpus)
    assert "more.jsonl:2: unknown label 'cobol'" in error.value.message
    assert "more.jsonl:3: " in error.value.message
    assert {path.name: path.read_bytes() for path in corpus.iterdir()} == before
