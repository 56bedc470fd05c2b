from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.special

from mlx_router.compute import mx
from mlx_router.errors import VersionCorrupt
from mlx_router.head.mlp import Head, forward, gelu
from mlx_router.head.weights import HeadWeights, load_head


def _random(hidden: int = 16, classes: int = 3) -> HeadWeights:
    rng = np.random.default_rng(0)
    shapes = ((hidden, 384), (hidden,), (classes, hidden), (classes,))
    return HeadWeights(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))


def test_numpy_and_mlx_agree() -> None:
    head = _random()
    x = np.random.default_rng(1).normal(size=(9, 384)).astype(np.float32)
    np.testing.assert_allclose(head.logits(x), forward(head)(x), atol=2e-4)


def test_standardisation_folds_into_the_first_layer() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(3.0, 2.0, size=(50, 8)).astype(np.float32)
    mean, std = x.mean(axis=0), x.std(axis=0)
    head = Head(8, 16, 3, dropout=0.0)
    folded = head.export(mean, std)
    plain = head.export(np.zeros(8, np.float32), np.ones(8, np.float32))
    np.testing.assert_allclose(folded.logits(x), plain.logits((x - mean) / std), atol=1e-4)


def test_file_keeps_the_original_keys(tmp_path: Path) -> None:
    head = _random()
    head.save(tmp_path / "router.safetensors")
    again = load_head(tmp_path / "router.safetensors", dim=384, classes=3)
    np.testing.assert_array_equal(again.w1, head.w1)


def test_every_mismatch_is_named(tmp_path: Path) -> None:
    head = _random()
    HeadWeights(head.w1, head.b1, head.w2, np.array([0, np.nan, 0, 0], np.float32)).save(tmp_path / "h.safetensors")
    with pytest.raises(VersionCorrupt) as error:
        load_head(tmp_path / "h.safetensors", dim=384, classes=3)
    assert "3.bias: shape (4,), expected (3,)" in error.value.message
    assert "3.bias: holds NaN" in error.value.message


def test_garbage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(VersionCorrupt, match="not a readable safetensors file"):
        load_head(tmp_path / "h.safetensors", dim=384, classes=3)


def test_gelu_and_its_slope_are_those_of_erf() -> None:
    x = np.linspace(-9, 9, 20001)
    phi = 0.5 * (1 + scipy.special.erf(x / np.sqrt(2)))
    slope = phi + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    single = mx.array(x.astype(np.float32))
    np.testing.assert_allclose(np.array(gelu(single)), x * phi, atol=2e-6)
    np.testing.assert_allclose(np.array(mx.grad(lambda v: gelu(v).sum())(single)), slope, atol=1e-5)
