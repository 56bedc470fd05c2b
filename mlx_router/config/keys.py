"""The API keys of a configuration."""

from __future__ import annotations

from mlx_router.config.schema import SecurityConfig
from mlx_router.errors import ConfigError


def read_api_keys(security: SecurityConfig) -> tuple[str, ...]:
    """Keys of the configuration, then those of its file, one a line; `#` begins a comment. Raises ConfigError."""
    path = security.api_keys_file
    if path is None:
        return security.api_keys
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"security.api_keys_file cannot be read: {path}: {reason}") from error
    return (*security.api_keys, *(line for line in lines if line and not line.startswith("#")))
