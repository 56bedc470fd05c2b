"""Conjugate gradients find what the closed form finds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from mlx_router.training.ridge import RIDGE, TOLERANCE, solve_dual


@pytest.mark.parametrize("columns", [2, 5])
def test_the_dual_is_that_of_the_closed_form(columns: int) -> None:
    rng = np.random.default_rng(0)
    features = scipy.sparse.random(80, 300, density=0.1, random_state=0, dtype=np.float32, format="csr")
    y = rng.standard_normal((80, columns)).astype(np.float32)
    y[:, 0] = 0.0  # a label without rows
    wanted = np.linalg.solve((features @ features.T).toarray() + RIDGE * np.eye(80), y)
    found = solve_dual(features, features.T.tocsr(), y)
    # The matrix is at least RIDGE I: an error is at most the residual over RIDGE.
    assert np.linalg.norm(found - wanted) <= TOLERANCE / RIDGE * np.linalg.norm(y) + 1e-5
