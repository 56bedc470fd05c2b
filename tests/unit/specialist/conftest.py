from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_router.specialist.loading import Base, load_base
from tests import tiny_chat
from tests.engine_driver import Driver, fresh

STARTERS = {"caller": "<tool_call>", "thinker": "<think>", "endless": "loop", "broken": "<tool_call>"}


@pytest.fixture(scope="session")
def scripted_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripted base, with its adapters in directories beside it."""
    root = tmp_path_factory.mktemp("scripted")
    for name, first in STARTERS.items():
        tiny_chat.save_starter(root / name, first)
    return tiny_chat.save_scripted(root / "base")


@pytest.fixture(scope="session")
def scripted_base(scripted_path: Path) -> Base:
    return load_base(str(scripted_path), scripted_path, max_context=2048)


@pytest.fixture(scope="session")
def revealing_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("revealing")
    for version in range(tiny_chat.CODES):
        tiny_chat.save_version(root / f"v{version}", version)
    return tiny_chat.save_revealing(root / "base")


@pytest.fixture(scope="session")
def revealing_base(revealing_path: Path) -> Base:
    return load_base(str(revealing_path), revealing_path, max_context=2048)


@pytest.fixture
def driver(scripted_base: Base, scripted_path: Path) -> Driver:
    return Driver(fresh(scripted_base), scripted_path.parent)


@pytest.fixture
def revealing(revealing_base: Base, revealing_path: Path) -> Driver:
    return Driver(fresh(revealing_base), revealing_path.parent)


@pytest.fixture
def make_driver() -> Callable[..., Driver]:
    """Drivers with other sizes: make_driver(base, adapters, slots=…, limits=…), on a model of its own."""
    return lambda base, adapters, **changes: Driver(fresh(base), adapters, **changes)
