"""Files that are replaced whole, and drafts that do not stay behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlx_router.files import replacing, write_atomic
from mlx_router.training.ridge import LexicalFits


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with replacing(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "x" * 10_000 + "\ud800")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_draft_that_cannot_take_its_place_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "a", "text")
    assert names(tmp_path) == ["a"]


def test_a_cache_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    y = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    with pytest.raises(OSError, match="No space left"):
        LexicalFits(["a b", "c d", "a b e", "c d f"], y, tmp_path).fit(np.arange(4))
    assert names(tmp_path) == []
