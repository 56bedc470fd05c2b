from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlx_router.training.checks import check_rows, template_share
from mlx_router.training.corpus import Row
from mlx_router.training.evaluate import eval_rows
from mlx_router.training.language import guess_language


def _rows(*texts: str, lang: str = "en", label: str = "rust") -> list[Row]:
    return [Row(text, (label,), lang, "test", f"{label}.jsonl:{i}") for i, text in enumerate(texts, start=1)]


def test_the_same_text_in_other_clothes() -> None:
    (problem,) = check_rows(_rows("Why is it MOVED?", "why is it moved"))
    assert problem == "rust.jsonl:2: the same text as rust.jsonl:1"


def test_near_duplicates_across_labels() -> None:
    rows = [*_rows("one meaning"), *_rows("uno", label="sql")]
    vectors = np.array([[1.0, 0.0], [0.99, 0.141]], dtype=np.float32)
    (problem,) = check_rows(rows, vectors)
    assert problem.startswith("sql.jsonl:1: near-duplicate of rust.jsonl:1 (label rust), meaning 0.99")


def test_rows_that_resemble_a_prompt_kept_apart() -> None:
    rows = _rows("why is it moved", "one meaning")
    apart = [Row(text, ("sql",), "en", "test", f"hard.jsonl:{i}") for i, text in enumerate(["Why is it MOVED?", "uno"])]
    vectors = np.array([[1, 0], [0, 1], [1, 0], [0.1, 0.995]], dtype=np.float32)
    same, alike, near = check_rows(rows, vectors, apart)
    assert same == "rust.jsonl:1: the same text as hard.jsonl:0"
    assert alike.startswith("rust.jsonl:1: near-duplicate of hard.jsonl:0 (label sql), meaning 1.00")
    assert near.startswith("rust.jsonl:2: near-duplicate of hard.jsonl:1 (label sql), meaning 1.00")
    assert check_rows(rows, vectors[:2]) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("écris à jean.dupont@orange.fr", "a mail address"),
        ("appelle le 06 12 34 56 78", "a phone number"),
        ("key ghp_abcdefghijklmnopqrstuvwx123456 leaked", "a secret key"),
    ],
)
def test_personal_data(text: str, kind: str) -> None:
    (problem,) = check_rows(_rows(text, lang="mixed"))
    assert f"looks like {kind}" in problem


def test_documentation_addresses_are_fine() -> None:
    assert check_rows(_rows("mail me@example.com from 192.0.2.10, port 5432")) == []


def test_wrong_language_tag() -> None:
    (problem,) = check_rows(_rows("pourquoi est-ce que le compilateur ne veut pas de cette ligne dans mon code"))
    assert problem == 'rust.jsonl:1: tagged "en", reads as "fr"'


def test_template_filled_often() -> None:
    texts = [f"please explain to me the {noun}" for noun in ["cat", "dog", "cow", "hen", "fox", "owl"]]
    share, example = template_share(texts)
    assert share == 1.0
    assert example in ("please explain to me", "explain to me the")
    assert template_share(texts[:5])[0] == 0.0


@pytest.mark.parametrize("text", ["stm32 hal spi dma", "SELECT * FROM t", "ok", "le build fails with the error"])
def test_no_guess_when_unsure(text: str) -> None:
    assert guess_language(text) is None


def test_prompts_kept_apart_may_have_labels_of_another_corpus(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text('{"text": "why is it moved", "label": "invoices", "lang": "en"}\n')
    (problem,) = check_rows(_rows("Why is it MOVED?"), apart=eval_rows(path))
    assert problem == "rust.jsonl:1: the same text as eval.jsonl:1"
