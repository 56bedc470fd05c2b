"""Read a safetensors file that has already been loaded into memory, trusting nothing in it.

Layout: u64 little-endian header length, a JSON header of `{name: {dtype, shape, data_offsets}}`, then the
data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_router.errors import AdapterError

Array = NDArray[Any]
Layout = tuple[str, list[int], int, int]  # dtype name, shape, first and last byte of the data

HEADER_LIMIT_BYTES = 64 * 2**20
DTYPES: Mapping[str, tuple[np.dtype[Any], int]] = {
    "F64": (np.dtype("<f8"), 8),
    "F32": (np.dtype("<f4"), 4),
    "F16": (np.dtype("<f2"), 2),
    "BF16": (np.dtype("<u2"), 2),  # widened to float32 below: exact
}
FLOAT32_MAX = float(np.finfo(np.float32).max)


def is_number(value: Any) -> bool:
    """Whether a value out of a JSON file is a number that float32 can hold: no boolean, NaN or infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX


def parse_safetensors(data: memoryview, where: str) -> dict[str, Array]:
    """Every tensor of a safetensors file, by name, as views of `data` (bfloat16 becomes float32).

    Raises AdapterError naming each tensor whose entry is malformed, overlaps the end of the file or has a
    dtype that adapters do not come in; and when tensors overlap each other.
    """
    header, body = _split(data, where)
    layouts: dict[str, Layout] = {}
    problems: list[str] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not name.isprintable():
            problems.append(f"{name!r}: no name of a tensor")
            continue
        try:
            layouts[name] = _layout(entry, len(body))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    claimed = sum(end - start for _, _, start, end in layouts.values())
    if claimed > len(body):
        problems.append(f"its tensors overlap: they take {claimed} bytes of {len(body)}")
    if problems:
        raise AdapterError.from_problems(f"{where} is damaged", problems)
    return {name: _tensor(layout, body) for name, layout in layouts.items()}


def _split(data: memoryview, where: str) -> tuple[dict[str, Any], memoryview]:
    if len(data) < 8:
        raise AdapterError(f"{where} is not a safetensors file: {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, HEADER_LIMIT_BYTES):
        raise AdapterError(f"{where} is not a whole safetensors file: its header would be {length} bytes")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{where}: the safetensors header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise AdapterError(f"{where}: the safetensors header is not an object")
    return header, data[8 + length :]


def _layout(entry: Any, data_bytes: int) -> Layout:
    """(dtype name, shape, start, end) of a header entry, checked; ValueError."""
    if not isinstance(entry, dict):
        raise ValueError("its header entry is not an object")
    dtype_name: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        raise ValueError(f"dtype {dtype_name!r} is none of {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > 8 or not _naturals(offsets) or len(offsets) != 2:
        raise ValueError("shape or data_offsets are not short lists of natural numbers")
    start, end = offsets
    if not start <= end <= data_bytes:
        raise ValueError(f"data {start}..{end} lies outside the file's {data_bytes} bytes of data")
    if end - start != math.prod(shape) * DTYPES[dtype_name][1]:
        raise ValueError(f"{end - start} bytes for shape {tuple(shape)} of {dtype_name}")
    return dtype_name, shape, start, end


def _tensor(layout: Layout, body: memoryview) -> Array:
    dtype_name, shape, start, end = layout
    flat = np.frombuffer(body[start:end], dtype=DTYPES[dtype_name][0])
    if dtype_name == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(shape)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)
