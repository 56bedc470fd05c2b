"""Does it fit? What the configured specialists will take, from file headers alone, against what is available.

weights      the tensors of the base, read from the safetensors headers
bank         slots x rank for every adapted projection of that base, at most `bank_bytes`
prompt cache `prompt_cache_bytes`
process      Python, mlx and the tokenizer
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mlx_router.config import Config, SpecialistConfig
from mlx_router.config.environment import hub_cache
from mlx_router.errors import SupervisorError

PROCESS_BYTES = 400 * 2**20
GATEWAY_BYTES = 600 * 2**20  # Python, the encoder and its graph
_BANK_ITEM_BYTES = 4  # float32 at most
_HEADER_LIMIT = 100 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes that one process will take."""

    name: str
    process_bytes: int
    weights_bytes: int = 0
    bank_bytes: int = 0
    prompt_cache_bytes: int = 0
    unknown: str = ""  # why the weights are not counted

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.process_bytes + self.weights_bytes + self.bank_bytes + self.prompt_cache_bytes

    def describe(self) -> str:
        """For a message: the sum and its parts."""
        parts = [
            (self.weights_bytes, "weights"),
            (self.bank_bytes, "bank"),
            (self.prompt_cache_bytes, "prompt cache"),
            (self.process_bytes, "process"),
        ]
        text = " + ".join(f"{gib(size)} {what}" for size, what in parts if size)
        return f"{self.name}: {gib(self.total_bytes)} = {text}" + (f" ({self.unknown})" if self.unknown else "")


def estimate(config: Config) -> list[Need]:
    """One need for each specialist that runs here, and the gateway."""
    needs = [_specialist(item, config.home) for item in config.specialists]
    return [*needs, Need(name="gateway", process_bytes=GATEWAY_BYTES)]


def check_memory(config: Config, available_bytes: int | None = None) -> list[Need]:
    """The needs. Raises SupervisorError, with the numbers, where they are more than what is available."""
    needs = estimate(config)
    if available_bytes is None:
        available_bytes = psutil.virtual_memory().available
    total = sum(need.total_bytes for need in needs)
    if config.supervisor.memory_check and total > available_bytes:
        raise SupervisorError.from_problems(
            f"{gib(total)} of memory are needed, {gib(available_bytes)} are available;"
            " take a smaller base, fewer slots or a smaller prompt cache, or set supervisor.memory_check = false",
            [need.describe() for need in needs],
        )
    return needs


def base_folder(base: str, home: Path) -> Path | None:
    """Where a base's files are now; None where they are not on this disk."""
    if base == "demo":
        folder = home / "demo" / "base"
        return folder if folder.is_dir() else None
    path = Path(base).expanduser()
    if path.is_dir():
        return path
    snapshots = hub_cache() / f"models--{base.replace('/', '--')}" / "snapshots"
    found = [item for item in snapshots.glob("*") if any(item.glob("*.safetensors"))]
    return max(found, key=lambda item: item.stat().st_mtime, default=None)


def gib(size_bytes: int) -> str:
    """Bytes for people."""
    if size_bytes < 2**30:
        return f"{size_bytes / 2**20:.0f} MiB"
    return f"{size_bytes / 2**30:.1f} GiB"


def _specialist(item: SpecialistConfig, home: Path) -> Need:
    folder = base_folder(item.base, home)
    weights, bank, unknown = 0, item.bank_bytes, ""
    if folder is None:
        unknown = f"{item.base} is not on this disk yet, its weights are not counted"
    else:
        tensors = list(_tensors(folder))
        weights = sum(size for _, _, size in tensors)
        per_rank = sum(_sides(shape, _bits(folder)) for name, shape, _ in tensors if _is_adapted(name, shape))
        bank = min(item.bank_bytes, per_rank * item.max_rank * (item.slots + 1) * _BANK_ITEM_BYTES)
    return Need(
        name=item.name,
        process_bytes=PROCESS_BYTES,
        weights_bytes=weights,
        bank_bytes=bank,
        prompt_cache_bytes=item.prompt_cache_bytes,
        unknown=unknown,
    )


def _tensors(folder: Path) -> Iterable[tuple[str, tuple[int, ...], int]]:
    """Name, shape and bytes of every tensor; a file that cannot be read counts with its size."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            header = _header(path)
            for name, entry in header.items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    yield name, tuple(entry["shape"]), int(end) - int(begin)
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            yield path.name, (), path.stat().st_size if path.exists() else 0


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _HEADER_LIMIT:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("not a safetensors file")
    return header


def _is_adapted(name: str, shape: tuple[int, ...]) -> bool:
    """Projections of attention and of dense blocks: what adapters usually touch. Experts have a pool of their own."""
    return len(shape) == 2 and name.endswith("proj.weight")


def _sides(shape: tuple[int, ...], bits: int) -> int:
    """in + out of a projection; packed integers hold 32 / bits inputs each."""
    return shape[0] + shape[1] * (32 // bits if bits else 1)


def _bits(folder: Path) -> int:
    """Bits of a quantised base, 0 where it is not."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int((config.get("quantization") or {}).get("bits", 0))
    except (OSError, ValueError, AttributeError):
        return 0
