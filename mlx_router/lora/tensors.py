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

HEADER_LIMIT_BYTES = 64 * 2**20
DTYPES: Mapping[str, tuple[np.dtype[Any], int]] = {
    "F64": (np.dtype("<f8"), 8),
    "F32": (np.dtype("<f4"), 4),
    "F16": (np.dtype("<f2"), 2),
    "BF16": (np.dtype("<u2"), 2),  # widened to float32 below: exact
}


def parse_safetensors(data: memoryview, where: str) -> dict[str, Array]:
    """Every tensor of a safetensors file, by name, as views of `data` (bfloat16 becomes float32).

    Raises AdapterError naming each tensor whose entry is malformed, overlaps the end of the file or has a
    dtype that adapters do not come in.
    """
    header, body = _split(data, where)
    tensors: dict[str, Array] = {}
    problems: list[str] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            tensors[name] = _tensor(entry, body)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise AdapterError.from_problems(f"{where} is damaged", problems)
    return tensors


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


def _tensor(entry: Any, body: memoryview) -> Array:
    if not isinstance(entry, dict):
        raise ValueError("its header entry is not an object")
    dtype_name: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        raise ValueError(f"dtype {dtype_name} is none of {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > 8 or not _naturals(offsets) or len(offsets) != 2:
        raise ValueError("shape or data_offsets are not short lists of natural numbers")
    dtype, width = DTYPES[dtype_name]
    start, end = offsets
    if not start <= end <= len(body):
        raise ValueError(f"data {start}..{end} lies outside the file's {len(body)} bytes of data")
    if end - start != math.prod(shape) * width:
        raise ValueError(f"{end - start} bytes for shape {tuple(shape)} of {dtype_name}")
    flat = np.frombuffer(body[start:end], dtype=dtype)
    if dtype_name == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(shape)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)
