"""What runs without a file: the embedded demo base and its twelve adapters, on two specialists."""

from __future__ import annotations

from pathlib import Path

from mlx_router.config.schema import Config, SpecialistConfig

HARDWARE = (
    "mascarade-kicad",
    "mascarade-spice",
    "mascarade-stm32",
    "mascarade-emc",
    "mascarade-embedded",
    "mascarade-platformio",
    "mascarade-freecad",
    "mascarade-dsp",
    "mascarade-iot",
    "mascarade-power",
    "mascarade-components-review",
)
CODE = ("mascarade-coder",)
_BANK_BYTES = 512 * 2**20  # the demo base is small, and so is what belongs to it
_PROMPT_CACHE_BYTES = 256 * 2**20


def default_config(home: Path) -> Config:
    """The built-in defaults."""
    return Config(
        home=home,
        specialists=(_specialist("hardware", 9360, HARDWARE), _specialist("code", 9361, CODE)),
    )


def _specialist(name: str, port: int, adapters: tuple[str, ...]) -> SpecialistConfig:
    return SpecialistConfig(
        name=name, port=port, adapters=adapters, bank_bytes=_BANK_BYTES, prompt_cache_bytes=_PROMPT_CACHE_BYTES
    )
