"""Options that several commands take."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_router import resources
from mlx_router.config import Config, EncoderConfig
from mlx_router.errors import CorpusError

if TYPE_CHECKING:
    from mlx_router.encoder.encoder import Encoder


def encoder_config(config: Config, runtime: str | None, path: str | None) -> EncoderConfig:
    """The configured encoder with --runtime and --encoder applied."""
    return dataclasses.replace(
        config.encoder,
        runtime=runtime or config.encoder.runtime,
        path=Path(path).expanduser() if path else config.encoder.path,
    )


def corpus_folder(data: str | None) -> Path:
    """The folder that --data names, else the shipped corpus. Raises CorpusError where there is none."""
    if data is None:
        return resources.corpus_dir()
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise CorpusError(f"there is no folder {folder}")
    return folder


def open_encoder(config: Config, runtime: str | None = None, path: str | None = None) -> Encoder:
    """The published encoder, on the runtime that options and configuration choose."""
    from mlx_router.head import router

    return router.open_encoder(config.home, encoder_config(config, runtime, path))
