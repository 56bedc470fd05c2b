from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mlx_router.errors import VersionCorrupt
from mlx_router.head.lexical import BUCKETS_UNSAID, Lexical, fold, hashed_ngrams, load_lexical
from mlx_router.training.ridge import count_ngrams, fit_lexical

TEXTS = [
    "route the differential pair on the board",
    "the board outline and its copper zone",
    "zone fill leaves the pad unconnected on the board",
    "borrow checker says the value was moved",
    "the lifetime of this borrow is too short",
    "cargo says the value does not live long enough",
]
TARGETS = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)


def test_fold_forgets_case_accents_digits_and_punctuation() -> None:
    assert fold("  Été_2024: STM32-F4!  ") == "ete 0000 stm00 f0"


@given(st.text(max_size=400))
def test_any_text_has_ngrams(text: str) -> None:
    buckets, values = hashed_ngrams(text)
    assert len(buckets) == len(values)
    assert np.all(np.diff(buckets.astype(np.int64)) > 0)


def test_learns_words_it_has_seen() -> None:
    lexical = fit_lexical(count_ngrams(TEXTS), TARGETS)
    scores = lexical.scores(["copper zone on my board", "the borrow does not live long enough"])
    assert scores.argmax(axis=1).tolist() == [0, 1]


def test_unknown_words_say_nothing() -> None:
    assert np.abs(fit_lexical(count_ngrams(TEXTS), TARGETS).scores(["", "漢字漢字"])).max() == 0.0


def test_survives_the_file(tmp_path: Path) -> None:
    lexical = fit_lexical(count_ngrams(TEXTS), TARGETS)
    lexical.save(tmp_path / "lexical.safetensors")
    again = load_lexical(tmp_path / "lexical.safetensors", classes=2)
    np.testing.assert_array_equal(again.scores(TEXTS), lexical.scores(TEXTS))


def test_wrong_number_of_labels_is_refused(tmp_path: Path) -> None:
    fit_lexical(count_ngrams(TEXTS), TARGETS).save(tmp_path / "lexical.safetensors")
    with pytest.raises(VersionCorrupt, match=r"weights: shape .* expected .*, 3\)"):
        load_lexical(tmp_path / "lexical.safetensors", classes=3)


def test_eight_bits_round_off_little() -> None:
    rng = np.random.default_rng(0)
    buckets = np.unique(np.concatenate([hashed_ngrams(text)[0] for text in TEXTS]))
    weights = rng.normal(0, 0.1, (len(buckets), 5)).astype(np.float32)
    idf = np.ones(len(buckets), dtype=np.float32)
    exact = Lexical(buckets, idf, weights, idf)
    np.testing.assert_allclose(Lexical.rounded(buckets, idf, weights).scores(TEXTS), exact.scores(TEXTS), atol=3e-3)


def test_a_file_from_before_the_wide_hash_answers_as_it_did(tmp_path: Path) -> None:
    found = np.unique(np.concatenate([hashed_ngrams(text, BUCKETS_UNSAID)[0] for text in TEXTS]))
    weights = np.random.default_rng(0).normal(size=(len(found), 2)).astype(np.float16)
    idf = np.ones(len(found), dtype=np.float32)
    save_file({"buckets": found, "idf": idf, "weights": weights}, tmp_path / "lexical.safetensors")
    lexical = load_lexical(tmp_path / "lexical.safetensors", classes=2)
    for text in TEXTS:
        buckets, counts = hashed_ngrams(text, BUCKETS_UNSAID)
        wanted = (counts / np.linalg.norm(counts)) @ weights[np.searchsorted(found, buckets)].astype(np.float32)
        np.testing.assert_allclose(lexical.scores([text])[0], wanted, atol=1e-5)


@pytest.mark.parametrize("size", ["0", "many", "12"])
def test_a_hash_that_does_not_fit_is_refused(tmp_path: Path, size: str) -> None:
    lexical = fit_lexical(count_ngrams(TEXTS), TARGETS)
    tensors = {"buckets": lexical.buckets, "idf": lexical.idf, "weights": lexical.weights, "scale": lexical.scale}
    save_file(tensors, tmp_path / "lexical.safetensors", metadata={"size": size})
    with pytest.raises(VersionCorrupt, match="lexical"):
        load_lexical(tmp_path / "lexical.safetensors", classes=2)
