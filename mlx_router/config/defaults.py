"""What runs without a file: the embedded demo base on two specialists, each with the adapters that name it."""

from __future__ import annotations

from pathlib import Path

from mlx_router.config.schema import Config, SpecialistConfig

PORTS = {"hardware": 9360, "code": 9361}
_BANK_BYTES = 512 * 2**20  # the demo base is small, and so is what belongs to it
_PROMPT_CACHE_BYTES = 256 * 2**20


def default_config(home: Path) -> Config:
    """The built-in defaults."""
    specialists = tuple(
        SpecialistConfig(name=name, port=port, bank_bytes=_BANK_BYTES, prompt_cache_bytes=_PROMPT_CACHE_BYTES)
        for name, port in PORTS.items()
    )
    return Config(home=home, specialists=specialists)
