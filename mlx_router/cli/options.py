"""Options that several commands take."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mlx_router.config import Config, EncoderConfig


def encoder_config(config: Config, runtime: str | None, path: str | None) -> EncoderConfig:
    """The configured encoder with --runtime and --encoder applied."""
    return dataclasses.replace(
        config.encoder,
        runtime=runtime or config.encoder.runtime,
        path=Path(path).expanduser() if path else config.encoder.path,
    )
