"""`mlx-router gateway`: the gateway alone, as `serve` starts it."""

from __future__ import annotations

import click


@click.command(name="gateway")
@click.option("--config", "config_path", metavar="FILE", help="Configuration file.")
@click.option("--home", metavar="DIR", help="Versions, adapters, logs.")
@click.option("--parent-pid", type=int, help="Leave when this process is no longer our parent.")
@click.pass_context
def command(ctx: click.Context, config_path: str | None, home: str | None, parent_pid: int | None) -> None:
    """Run the gateway alone (a child of serve)."""
    import logging

    from mlx_router.config import load_config
    from mlx_router.gateway.server import serve
    from mlx_router.gateway.service import Gateway

    logging.getLogger("mlx_router").setLevel(logging.INFO)  # incidents, in the log that serve keeps
    given = ctx.obj or {}
    config = load_config(config_path or given.get("config"), home or given.get("home"))
    serve(Gateway(config), parent_pid=parent_pid)
