"""Find, read and validate mlx-router.toml."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_router.config.check import Known, check
from mlx_router.config.defaults import default_config
from mlx_router.config.environment import apply_environment, home_dir
from mlx_router.config.parse import Problems, read_config
from mlx_router.config.schema import Config, SpecialistConfig
from mlx_router.errors import ConfigError

CONFIG_NAME = "mlx-router.toml"


def find_config(explicit: str | Path | None, home: Path) -> Path | None:
    """The configuration file in force, or None for built-in defaults."""
    if explicit is not None:
        path = Path(explicit).expanduser()
        if not path.is_file():
            raise ConfigError(f"configuration file {path} does not exist")
        return path.resolve()
    for path in (Path(CONFIG_NAME), home / CONFIG_NAME):
        if path.is_file():
            return path.resolve()
    return None


def load_config(
    path: str | Path | None = None,
    home: str | Path | None = None,
    *,
    known: Known | None = None,
    ports: Mapping[str, int] | None = None,
) -> Config:
    """Read and validate the configuration. Raises ConfigError, which names every problem with its line.

    Args:
        known: adapters and domains that the file may refer to; without it such names are not looked up, and the file
            of keys is not read.
        ports: by name, in place of those of the file and of $MLX_ROUTER_PORTS; other names are passed over.
    """
    home_path = home_dir(home)
    found = find_config(path, home_path)
    if found is None:
        return _finish(default_config(home_path), Problems(), known, ports, "built-in defaults")
    try:
        text = found.read_text(encoding="utf-8").replace("\r\n", "\n")
        raw = tomllib.loads(text)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{found}: {error}") from error
    return parse_config(raw, home=home_path, path=found, text=text, known=known, ports=ports)


def parse_config(
    raw: Mapping[str, Any],
    *,
    home: Path,
    path: Path | None = None,
    text: str = "",
    known: Known | None = None,
    ports: Mapping[str, int] | None = None,
) -> Config:
    """Build a Config from decoded TOML; `text` is what it was decoded from, for line numbers. Raises ConfigError."""
    problems = Problems(text)
    config = read_config(raw, home=home, path=path, problems=problems)
    folder = path.parent if path is not None else Path.cwd()
    config = dataclasses.replace(config, specialists=tuple(_local_base(item, folder) for item in config.specialists))
    return _finish(config, problems, known, ports, str(path or "configuration"))


def _finish(
    config: Config, problems: Problems, known: Known | None, ports: Mapping[str, int] | None, where: str
) -> Config:
    config = apply_environment(config, ports)
    notices = check(config, problems, known)
    if problems:
        raise ConfigError.from_problems(f"{where} has problems", problems.messages())
    return dataclasses.replace(config, notices=config.notices + notices)


def _local_base(item: SpecialistConfig, folder: Path) -> SpecialistConfig:
    """A base that is written as a relative path lies beside the file."""
    if not item.base.startswith(("./", "../", "~")):
        return item
    return dataclasses.replace(item, base=str((folder / Path(item.base).expanduser()).resolve()))
