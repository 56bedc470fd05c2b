"""What every command shares: the home and the configuration that the global options name, machine-readable output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mlx_router.config import Config, home_dir, load_config
from mlx_router.errors import ConfigError


def current_home(ctx: click.Context) -> Path:
    """The home, for commands that need nothing of the configuration."""
    return home_dir(ctx.find_root().obj["home"])


def current_config(ctx: click.Context) -> Config:
    """Read the configuration once, on first need. Raises ConfigError."""
    root = ctx.find_root()
    settings: dict[str, Any] = root.obj
    if "loaded" not in settings:
        settings["loaded"] = load_config(settings["config"], settings["home"])
    config: Config = settings["loaded"]
    return config


def readable_config(ctx: click.Context) -> Config | None:
    """The configuration; where it is bad, None and a warning that says why: for commands that go on without it."""
    try:
        return current_config(ctx)
    except ConfigError as error:
        click.echo(f"warning: {error.message}", err=True)
        return None


def echo_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))
