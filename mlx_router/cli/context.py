"""What every command shares: the configuration that the global options name, and machine-readable output."""

from __future__ import annotations

import json
from typing import Any

import click

from mlx_router.config import Config, load_config


def current_config(ctx: click.Context) -> Config:
    """Read the configuration once, on first need."""
    root = ctx.find_root()
    settings: dict[str, Any] = root.obj
    if "loaded" not in settings:
        settings["loaded"] = load_config(settings["config"], settings["home"])
    config: Config = settings["loaded"]
    return config


def echo_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))
