"""Embeddings of a JSONL file of any length: read in chunks, written in shards, in memory that does not grow.

    OUT/part-00000.npy …   float32 (rows, 384), rows in the order of the file; each published when it is whole
    OUT/index.json         rows, shards, and what they were made with; written last

A run that was cut off goes on after its last whole shard, if source and encoder are still the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mlx_router.encoder.encoder import DIM, Encoder
from mlx_router.errors import CorpusError
from mlx_router.files import write_json

CHUNK_ROWS = 4096  # texts in memory at once
SHARD_ROWS = 65_536  # 100 MB
INDEX = "index.json"
PLAN = "plan.json"
_HEADER_BYTES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a run did."""

    rows: int
    shards: int
    encoded: int  # rows of this run; the others were there already


def embed_file(
    source: Path,
    out: Path,
    encoder: Encoder,
    *,
    field: str = "text",
    chunk_rows: int = CHUNK_ROWS,
    shard_rows: int = SHARD_ROWS,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Embed the `field` of every line of `source` into shards under `out`.

    Raises CorpusError for a line that has no such string, with its number.
    """
    out.mkdir(parents=True, exist_ok=True)
    if shard_rows % chunk_rows:
        shard_rows = max(shard_rows // chunk_rows, 1) * chunk_rows  # whole chunks, so that a second run cuts alike
    plan = _plan(source, encoder, field, chunk_rows, shard_rows)
    done = _whole_shards(out, plan, shard_rows)
    (out / INDEX).unlink(missing_ok=True)
    write_json(out / PLAN, plan)
    if progress is not None:
        progress(done * shard_rows)
    rows = done * shard_rows
    shard = _Shard(out, done, shard_rows)
    try:
        for texts in chunks(source, field, chunk_rows, skip=rows):
            shard = shard.append(encoder.encode(texts, progress))
            rows += len(texts)
        shards = shard.finish()
    finally:
        shard.close()
    write_json(out / INDEX, {"rows": rows, "dim": DIM, "shards": shards, "shard_rows": shard_rows, **plan})
    return Written(rows=rows, shards=shards, encoded=rows - done * shard_rows)


def read_shards(folder: Path) -> Iterator[npt.NDArray[np.float32]]:
    """Memory-mapped (rows, 384) arrays, in order. Raises CorpusError where the folder is not finished."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorpusError(f"{folder} has no finished embeddings: {error}") from error
    for number in range(int(index["shards"])):
        yield np.load(_name(folder, number), mmap_mode="r")


def count_rows(source: Path) -> int:
    """Lines that are not empty. Raises CorpusError where the file cannot be read."""
    try:
        with source.open("rb") as file:
            return sum(1 for line in file if line.strip())
    except OSError as error:
        raise CorpusError(f"{source}: {error.strerror or error}") from error


def chunks(source: Path, field: str, size: int, *, skip: int = 0) -> Iterator[list[str]]:
    """Lists of at most `size` texts, in order; the first `skip` rows are passed over. Empty lines do not count."""
    texts: list[str] = []
    seen = 0
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            seen += 1
            if seen <= skip:
                continue
            texts.append(_text(line, field, f"{source}:{number}"))
            if len(texts) == size:
                yield texts
                texts = []
    if texts:
        yield texts


def _text(line: bytes, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise CorpusError(f"{where}: {error}") from error
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise CorpusError(f"{where}: no string {field!r} in it")
    return text


class _Shard:
    """One .npy file under way: a header of fixed length, then rows as they come."""

    def __init__(self, out: Path, number: int, capacity: int) -> None:
        self._out, self._number, self._capacity = out, number, capacity
        self._rows = 0
        self._file: BinaryIO | None = None

    def append(self, vectors: npt.NDArray[np.float32]) -> _Shard:
        """Write rows; the shard that the next rows belong to."""
        if self._file is None:
            self._file = self._draft.open("wb")
            self._file.write(_header(0))
        self._file.write(np.ascontiguousarray(vectors, dtype="<f4").data)
        self._rows += len(vectors)
        if self._rows < self._capacity:
            return self
        self._publish()
        return _Shard(self._out, self._number + 1, self._capacity)

    def finish(self) -> int:
        """Publish what there is; the number of shards in all."""
        if self._rows:
            self._publish()
            return self._number + 1
        return self._number

    def close(self) -> None:
        """Drop what is not published."""
        if self._file is not None:
            self._file.close()
            self._draft.unlink(missing_ok=True)

    @property
    def _draft(self) -> Path:
        return self._out / f".part-{self._number:05d}.tmp"

    def _publish(self) -> None:
        if self._file is None:
            return
        self._file.seek(0)
        self._file.write(_header(self._rows))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self._draft.replace(_name(self._out, self._number))


def _header(rows: int) -> bytes:
    """The header of a float32 .npy of this many rows, always of the same length."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {DIM}), }}"
    return (
        b"\x93NUMPY\x01\x00"
        + (_HEADER_BYTES - 10).to_bytes(2, "little")
        + text.ljust(_HEADER_BYTES - 11).encode()
        + b"\n"
    )


def _plan(source: Path, encoder: Encoder, field: str, chunk_rows: int, shard_rows: int) -> dict[str, Any]:
    """What decides every number of the output."""
    try:
        stat = source.stat()
    except OSError as error:
        raise CorpusError(f"{source}: {error.strerror or error}") from error
    return {
        "source": source.name,
        "source_bytes": stat.st_size,
        "source_mtime_ns": stat.st_mtime_ns,
        "field": field,
        "encoder": encoder.digest,
        "runtime": encoder.arithmetic,
        "chunk_rows": chunk_rows,
        "shard_rows": shard_rows,
    }


def _whole_shards(out: Path, plan: dict[str, Any], shard_rows: int) -> int:
    """Full shards of an earlier run with the same plan; those of another one are deleted."""
    try:
        same = json.loads((out / PLAN).read_text(encoding="utf-8")) == plan
    except (OSError, ValueError):
        same = False
    done = 0
    while same and _rows_of(_name(out, done)) == shard_rows:
        done += 1
    for path in out.glob("part-*.npy"):
        if int(path.stem.removeprefix("part-")) >= done:
            path.unlink()
    return done


def _rows_of(path: Path) -> int:
    try:
        return int(np.load(path, mmap_mode="r").shape[0])
    except (OSError, ValueError):
        return 0


def _name(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.npy"
