"""Both runtimes against goldens that sentence-transformers made (scripts/make_encoder_goldens.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_router.encoder.encoder import Encoder, load_encoder
from mlx_router.encoder.weights import find_encoder

GOLDENS = Path(__file__).parent / "goldens" / "encoder.npz"
TOLERANCE = 1e-5  # float32 sums in another order; measured 3e-7


@pytest.fixture(scope="module")
def goldens() -> tuple[list[str], npt.NDArray[np.float32]]:
    with np.load(GOLDENS) as stored:
        return stored["texts"].tolist(), stored["vectors"]


@pytest.fixture(scope="module", params=["mlx", "onnx"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return load_encoder(find_encoder(), runtime=request.param)


@pytest.fixture(scope="module")
def both() -> tuple[Encoder, Encoder]:
    return load_encoder(find_encoder(), runtime="mlx"), load_encoder(find_encoder(), runtime="onnx")


def test_goldens(encoder: Encoder, goldens: tuple[list[str], npt.NDArray[np.float32]]) -> None:
    texts, wanted = goldens
    found = encoder.encode(texts)
    assert len(texts) >= 200
    assert np.abs(found - wanted).max() <= TOLERANCE
    assert (found * wanted).sum(axis=1).min() >= 0.99999


def test_goldens_can_fail(encoder: Encoder, goldens: tuple[list[str], npt.NDArray[np.float32]]) -> None:
    texts, wanted = goldens
    found = encoder.encode([text.upper() + " x" for text in texts[:40]])
    assert np.abs(found - wanted[:40]).max() > TOLERANCE


def test_order_does_not_depend_on_batches(encoder: Encoder) -> None:
    texts = [f"{'word ' * (i * 7 % 50)}{i}" for i in range(70)]
    together = encoder.encode(texts)
    for index in (0, 13, 69):
        np.testing.assert_allclose(encoder.encode([texts[index]])[0], together[index], atol=TOLERANCE)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=12))
def test_runtimes_agree_on_anything(both: tuple[Encoder, Encoder], texts: list[str]) -> None:
    mlx, onnx = both
    np.testing.assert_allclose(mlx.encode(texts), onnx.encode(texts), atol=TOLERANCE)


def test_half_precision_stays_close() -> None:
    texts = ["Comment router une paire différentielle USB ?", "why does cargo rebuild everything"]
    full = load_encoder(find_encoder(), runtime="mlx").encode(texts)
    half = load_encoder(find_encoder(), runtime="mlx", dtype="float16").encode(texts)
    assert 0 < np.abs(full - half).max() < 2e-3
