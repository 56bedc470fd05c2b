"""The decision log: lines, rotation, a disk that is full."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from mlx_router.gateway.decision_log import DecisionLog


def write(log: DecisionLog, *batches: list[dict[str, object]]) -> None:
    """Each batch is written on its own."""

    async def main() -> None:
        for batch in batches:
            for record in batch:
                log.add(json.dumps(record))
            log._flush()
        await log.close()

    asyncio.run(main())


def test_one_json_line_a_request(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log" / "d.jsonl", max_bytes=10**6, files=3, keep=2)
    write(log, [{"domain": "é\n", "n": n} for n in range(3)])
    lines = (tmp_path / "log" / "d.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["n"] for line in lines] == [0, 1, 2]
    assert [record["n"] for record in log.recent(9)] == [2, 1]
    assert log.recent(1) == [{"domain": "é\n", "n": 2}]


def test_files_rotate_by_size(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    write(DecisionLog(path, max_bytes=10, files=3, keep=1), *[[{"number": n}] for n in range(5)])
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "d.jsonl.1": '{"number": 4}\n',
        "d.jsonl.2": '{"number": 3}\n',
    }


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    before = os.umask(0o022)
    try:
        write(DecisionLog(path, max_bytes=10**6, files=3, keep=1), [{"n": 1}])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.symlink_to("/dev/full")
    log = DecisionLog(path, max_bytes=10**6, files=3, keep=5)
    write(log, [{"n": 1}], [{"n": 2}, {"n": 3}])
    assert log.lost == 3
    assert "space" in log.error.lower()
    assert len(log.recent(9)) == 3
