from __future__ import annotations

import numpy as np
import pytest

from mlx_router.encoder.tokenizer import Tokenizer
from mlx_router.encoder.weights import find_encoder

CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(find_encoder().tokenizer)


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_blank_text_is_two_tokens(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode([text])[0].tolist() == [CLS, SEP]


def test_nothing_is_padded(tokenizer: Tokenizer) -> None:
    short, long = tokenizer.encode(["hi", "a longer sentence of seven words"])
    assert len(short) == 3
    assert len(long) == 8


def test_long_text_keeps_head_and_tail(tokenizer: Tokenizer) -> None:
    text = "alpha " + "word " * 5000 + "omega"
    (ids,) = tokenizer.encode([text])
    (head,), (tail,) = tokenizer.encode(["alpha"]), tokenizer.encode(["omega"])
    assert len(ids) == 256
    assert ids[:2].tolist() == head[:2].tolist()
    assert ids[-len(tail[1:]) :].tolist() == tail[1:].tolist()


def test_a_megabyte_costs_no_more_than_a_page(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode(["x y z " * 200_000])
    assert len(ids) == 256


def test_undecodable_bytes_become_question_marks(tokenizer: Tokenizer) -> None:
    broken = b"caf\xe9".decode("utf-8", "surrogateescape")
    np.testing.assert_array_equal(*tokenizer.encode([broken, "caf?"]))
