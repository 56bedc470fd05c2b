"""Rotation, and disks that take nothing more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mlx_router.supervisor.logfile import RotatingLog


def test_it_rotates_and_keeps_so_many_files(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "log" / "a.log", max_bytes=100, files=3)
    for number in range(40):
        log.write(f"line {number:02d} 0123456789\n".encode())
    log.close()
    names = sorted(path.name for path in (tmp_path / "log").iterdir())
    assert names == ["a.log", "a.log.1", "a.log.2"]
    text = "".join((tmp_path / "log" / name).read_text() for name in reversed(names))
    assert text.endswith("line 39 0123456789\n")
    assert all(path.stat().st_size <= 100 for path in (tmp_path / "log").iterdir())
    assert [line.split()[1] for line in text.splitlines()] == [f"{n:02d}" for n in range(40 - len(text) // 19, 40)]


def test_it_goes_on_with_a_file_that_is_there(tmp_path: Path) -> None:
    for word in (b"one\n", b"two\n"):
        log = RotatingLog(tmp_path / "a.log", max_bytes=100, files=2)
        log.write(word)
        log.close()
    assert (tmp_path / "a.log").read_text() == "one\ntwo\n"


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RotatingLog(tmp_path / "a.log", max_bytes=10**6, files=2)
    log.write(b"before\n")
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    log.write(b"lost\n")
    assert log.error == "No space left on device"
    monkeypatch.setattr(os, "write", real)
    for _ in range(70):
        log.write(b"x" * 1023 + b"\n")
    assert log.error == ""
    assert log.lost_bytes > 5
    assert log.tail()[-1] == "x" * 1023
    log.write(b"after\n")
    log.close()
    text = (tmp_path / "a.log").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "lost" not in text


def test_a_folder_that_cannot_be_made_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file")
    log = RotatingLog(tmp_path / "log" / "a.log", max_bytes=100, files=2)
    log.write(b"Error: something\n")
    assert log.error
    assert log.tail() == ["Error: something"]


def test_the_tail_joins_what_comes_in_pieces(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "a.log", max_bytes=10**6, files=2)
    for piece in (b"Err", b"or: x\nnext", b" line\n"):
        log.write(piece)
    assert log.tail() == ["Error: x", "next line"]
    log.forget()
    assert log.tail() == []
    log.close()
