from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_router.errors import CorpusError
from mlx_router.training.corpus import normalize, read_corpus
from tests.small_corpus import LABELS, write_small_corpus


def _row(content: str, label: str = "rust", **changes: object) -> str:
    return json.dumps({"text": content, "labels": [label], "lang": "en", "origin": "test", **changes})


def test_reads_rows_in_order_with_their_place(tmp_path: Path) -> None:
    corpus = read_corpus(write_small_corpus(tmp_path))
    assert corpus.labels == tuple(sorted(LABELS))
    assert corpus.rows[0].where == "_outside.jsonl:1"
    assert corpus.rows[0].label == "_outside"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object, got list"),
        (_row(""), "empty text"),
        (_row("le cafÃ© est froid"), "mojibake or a tokenizer mark: 'Ã©'"),
        (_row("thisĠis"), "mojibake or a tokenizer mark: 'Ġ'"),
        (_row("bell \x07"), "control character"),
        (_row("x", "sql"), "the first label must be the file's"),
        (_row("x", labels=["rust", "cobol"]), "unknown label 'cobol'"),
        (_row("x", labels="rust"), '"labels" must be a list'),
        (_row("x", lang="klingon"), '"lang" must be one of'),
        (_row("x", text=3), '"text" must be a string, got int'),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "rust.jsonl").write_text(_row("fine") + "\n" + line + "\n", encoding="utf-8")
    (tmp_path / "sql.jsonl").write_text(_row("select", "sql") + "\n", encoding="utf-8")
    with pytest.raises(CorpusError) as error:
        read_corpus(tmp_path)
    assert "rust.jsonl:2: " in error.value.message
    assert problem in error.value.message


def test_all_problems_at_once(tmp_path: Path) -> None:
    (tmp_path / "rust.jsonl").write_bytes(b"{\n" + _row("").encode() + b"\n\xff\n")
    with pytest.raises(CorpusError, match=r"\(3\)") as error:
        read_corpus(tmp_path)
    assert "rust.jsonl:3: not UTF-8" in error.value.message


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no <label>"):
        read_corpus(tmp_path)


def test_normalize() -> None:
    assert normalize(" e\u0301t\u00e9 \r\n fin ") == "\u00e9t\u00e9\n fin"
