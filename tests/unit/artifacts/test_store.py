from __future__ import annotations

from pathlib import Path

import pytest

from mlx_router.artifacts.store import REQUIRED, RouterStore
from mlx_router.errors import ArtifactError, VersionCorrupt, VersionNotFound


def _publish(store: RouterStore, content: str = "x") -> str:
    with store.draft() as draft:
        for name in REQUIRED:
            (draft / name).write_text(content)
        return store.publish(draft)


@pytest.fixture
def store(tmp_path: Path) -> RouterStore:
    return RouterStore(tmp_path)


def test_versions_count_upwards(store: RouterStore) -> None:
    assert [_publish(store), _publish(store)] == ["v0001", "v0002"]
    assert store.versions() == ["v0001", "v0002"]
    assert store.current() is None


def _interrupted(store: RouterStore) -> None:
    with store.draft() as draft:
        (draft / "meta.json").write_text("{}")
        raise KeyboardInterrupt


def test_an_interrupted_draft_leaves_nothing(store: RouterStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        _interrupted(store)
    assert list(store.root.iterdir()) == []


def test_an_incomplete_draft_is_refused(store: RouterStore) -> None:
    with store.draft() as draft, pytest.raises(ArtifactError, match=r"lacks router\.safetensors, meta\.json"):
        store.publish(draft)


def test_two_publishers_get_two_names(store: RouterStore) -> None:
    with store.draft() as mine:
        for name in REQUIRED:
            (mine / name).write_text("mine")
        assert _publish(store, "theirs") == "v0001"
        assert store.publish(mine) == "v0002"


@pytest.mark.parametrize("damage", ["change", "truncate", "remove"])
@pytest.mark.parametrize("name", REQUIRED)
def test_damage_is_refused_by_name_and_the_active_one_stays(store: RouterStore, damage: str, name: str) -> None:
    good, bad = _publish(store, "good"), _publish(store, "bad!")
    store.activate(good)
    path = store.path(bad) / name
    {"change": lambda: path.write_text("evil"), "truncate": lambda: path.write_text(""), "remove": path.unlink}[
        damage
    ]()
    with pytest.raises(VersionCorrupt, match=name):
        store.activate(bad)
    assert store.current() == good


def test_rollback_walks_back_and_stops(store: RouterStore) -> None:
    first, second, third = (_publish(store, str(i)) for i in range(3))
    for version in (first, second, third):
        store.activate(version)
    assert [store.rollback(), store.rollback()] == [second, first]
    with pytest.raises(VersionNotFound, match="no earlier router version"):
        store.rollback()
    assert store.current() == first


def test_rollback_passes_over_a_corrupt_version(store: RouterStore) -> None:
    first, second, third = (_publish(store, str(i)) for i in range(3))
    for version in (first, second, third):
        store.activate(version)
    (store.path(second) / "meta.json").unlink()
    assert store.rollback() == first


def test_a_corrupt_active_version_gives_way_and_says_so(store: RouterStore) -> None:
    first, second = _publish(store, "1"), _publish(store, "2")
    store.activate(first)
    store.activate(second)
    assert store.serving() == (second, None)
    (store.path(second) / "router.safetensors").write_text("evil")
    version, notice = store.serving()
    assert version == first
    assert "router.safetensors" in str(notice)
    assert f"serving {first} instead" in str(notice)
    (store.path(first) / "meta.json").unlink()
    with pytest.raises(VersionCorrupt, match=second):
        store.serving()


def test_unknown_version_names_those_there_are(store: RouterStore) -> None:
    _publish(store)
    with pytest.raises(VersionNotFound, match="there is: v0001"):
        store.path("../v0001")
