"""`mlx-router specialist NAME`: one specialist alone, as `serve` starts it."""

from __future__ import annotations

import click


@click.command(name="specialist")
@click.argument("name")
@click.option("--config", "config_path", metavar="FILE", help="Configuration file.")
@click.option("--home", metavar="DIR", help="Versions, adapters, logs.")
@click.option("--parent-pid", type=int, help="Leave when this process is gone.")
@click.pass_context
def command(ctx: click.Context, name: str, config_path: str | None, home: str | None, parent_pid: int | None) -> None:
    """Run the specialist NAME alone (a child of serve)."""
    import logging

    from mlx_router.config import load_config
    from mlx_router.errors import ConfigError
    from mlx_router.specialist.server import serve

    logging.getLogger("mlx_router").setLevel(logging.INFO)  # one line a request, in the log that serve keeps
    given = ctx.obj or {}
    config = load_config(config_path or given.get("config"), home or given.get("home"))
    settings = next((item for item in config.specialists if item.name == name), None)
    if settings is None:
        names = ", ".join(item.name for item in config.specialists) or "none"
        raise ConfigError(f"no specialist is called {name!r}; configured: {names}")
    serve(config, settings, parent_pid=parent_pid)
