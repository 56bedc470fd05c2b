from __future__ import annotations

import importlib
from typing import Any

from mlx_router.compute import mx
from mlx_router.specialist.generation import ModelStates

_cache: Any = importlib.import_module("mlx_lm.models.cache")


def test_a_recurrent_state_holds_only_its_own_row() -> None:
    """What a state is accounted for is what it keeps alive, also inside a list of caches."""
    rows, width = 8, 2**18
    before = mx.get_active_memory()
    recurrent = [_cache.ArraysCache(2), _cache.ArraysCache(1)]
    for part in recurrent:
        part[0] = mx.random.normal((rows, width))
    batch = [recurrent[0], _cache.CacheList(recurrent[1])]
    mx.eval([part.state for part in batch])
    expected = recurrent[1][0][3].tolist()
    states = ModelStates()
    recurrent[0][1] = mx.ones((rows, width))
    state = [part.extract(3) for part in batch]
    states.compute(state)
    assert state[1][0][0][0].tolist() == expected
    del batch, recurrent, part
    assert states.nbytes(state) == 3 * width * 4
    assert mx.get_active_memory() - before < 1.1 * states.nbytes(state)
