"""Shards of embeddings: order, cut-off runs, memory."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_router.encoder.encoder import DIM
from mlx_router.errors import CorpusError
from mlx_router.training.stream import embed_file, read_shards


class FakeEncoder:
    """A vector that tells its text."""

    digest = "d" * 64
    arithmetic = "fake"

    def __init__(self, fail_after: int = 10**9) -> None:
        self.texts = 0
        self.fail_after = fail_after

    def encode(self, texts: Sequence[str], progress: Any = None) -> np.ndarray:
        self.texts += len(texts)
        if self.texts > self.fail_after:
            raise RuntimeError("cut off")
        if progress is not None:
            progress(len(texts))
        return np.stack([vector(text) for text in texts])


def vector(text: str) -> np.ndarray:
    return np.full(DIM, int.from_bytes(hashlib.sha256(text.encode()).digest()[:3], "big"), dtype=np.float32)


def write(path: Path, count: int) -> list[str]:
    texts = [f"text {number} é" for number in range(count)]
    path.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n\n" for text in texts), encoding="utf-8"
    )
    return texts


def run(tmp_path: Path, encoder: Any, **more: Any) -> Any:
    return embed_file(tmp_path / "a.jsonl", tmp_path / "out", encoder, chunk_rows=4, shard_rows=12, **more)


def test_rows_are_in_the_order_of_the_file_whatever_the_shards(tmp_path: Path) -> None:
    texts = write(tmp_path / "a.jsonl", 31)
    seen: list[int] = []
    done = run(tmp_path, FakeEncoder(), progress=seen.append)
    assert (done.rows, done.shards, done.encoded, sum(seen)) == (31, 3, 31, 31)
    shards = list(read_shards(tmp_path / "out"))
    assert [shard.shape for shard in shards] == [(12, DIM), (12, DIM), (7, DIM)]
    assert np.array_equal(np.concatenate(shards), np.stack([vector(text) for text in texts]))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("index.json", "part-00000.npy", "part-00001.npy", "part-00002.npy", "plan.json")
    ]


@pytest.mark.parametrize("count", [0, 12, 24])
def test_no_empty_shard_is_left(tmp_path: Path, count: int) -> None:
    write(tmp_path / "a.jsonl", count)
    assert run(tmp_path, FakeEncoder()).shards == count // 12
    assert sum(len(shard) for shard in read_shards(tmp_path / "out")) == count


def test_a_run_that_was_cut_off_goes_on_after_its_last_whole_shard(tmp_path: Path) -> None:
    texts = write(tmp_path / "a.jsonl", 31)
    with pytest.raises(RuntimeError):
        run(tmp_path, FakeEncoder(fail_after=20))
    with pytest.raises(CorpusError, match="no finished embeddings"):
        list(read_shards(tmp_path / "out"))
    assert not list((tmp_path / "out").glob(".part*"))
    encoder = FakeEncoder()
    seen: list[int] = []
    done = run(tmp_path, encoder, progress=seen.append)
    assert (done.rows, done.encoded, encoder.texts, sum(seen)) == (31, 19, 19, 31)
    assert np.array_equal(np.concatenate(list(read_shards(tmp_path / "out"))), np.stack([vector(t) for t in texts]))


def test_another_source_or_encoder_begins_anew(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", 31)
    run(tmp_path, FakeEncoder())
    assert run(tmp_path, FakeEncoder()).encoded == 7  # the last shard is not full, and may grow
    other = FakeEncoder()
    other.digest = "e" * 64
    assert run(tmp_path, other).encoded == 31
    other.arithmetic = "fake-bfloat16"
    assert run(tmp_path, other).encoded == 31
    write(tmp_path / "a.jsonl", 14)
    assert run(tmp_path, other).encoded == 14
    assert sum(len(shard) for shard in read_shards(tmp_path / "out")) == 14


@pytest.mark.parametrize("line", ["{", "[]", '{"other": 1}', '{"text": 1}'])
def test_a_line_without_a_text_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.jsonl:3"):
        run(tmp_path, FakeEncoder())
    with pytest.raises(CorpusError, match="No such file"):
        embed_file(tmp_path / "none.jsonl", tmp_path / "out", FakeEncoder())  # type: ignore[arg-type]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        write(tmp_path / "a.jsonl", rows)
        tracemalloc.start()
        embed_file(tmp_path / "a.jsonl", tmp_path / f"out{rows}", FakeEncoder(), chunk_rows=256, shard_rows=4096)  # type: ignore[arg-type]
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(1024), peak(12 * 1024)
    assert large < small * 1.5 < 12 * 1024 * DIM * 4 / 4
