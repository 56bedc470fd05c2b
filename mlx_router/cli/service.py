"""`mlx-router service`: start at boot, without a terminal and without anybody logged in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlx_router.cli.context import current_config, current_home, readable_config

if TYPE_CHECKING:
    from mlx_router.config import Config
    from mlx_router.supervisor.service import Service

_SYSTEM = click.option(
    "--system",
    is_flag=True,
    help="For the whole machine, before anybody logs in (needs root): a launchd daemon, a systemd system unit.",
)


@click.group()
def service() -> None:
    """Start at boot: launchd on macOS, systemd on Linux."""


@service.command()
@_SYSTEM
@click.pass_context
def show(ctx: click.Context, system: bool) -> None:
    """Print what `install` would write, and where."""
    chosen = _service(current_config(ctx), system)
    click.echo(f"# {chosen.path}", err=True)
    click.echo(chosen.text, nl=False)


@service.command()
@_SYSTEM
@click.option("--start/--no-start", default=True, show_default=True, help="Start it now, too.")
@click.pass_context
def install(ctx: click.Context, system: bool, start: bool) -> None:
    """Write the service file, enable it and start it."""
    chosen = _service(current_config(ctx), system)
    click.echo(f"{'wrote' if chosen.install() else 'unchanged:'} {chosen.path}")
    if start:
        for command in (*chosen.clear(), *chosen.run(chosen.start_commands)):
            click.echo(f"ran: {command}")
    else:
        click.echo("start it with: " + " && ".join(" ".join(command) for command in chosen.start_commands))
    for line in chosen.advice:
        click.echo(line)


@service.command()
@_SYSTEM
@click.pass_context
def uninstall(ctx: click.Context, system: bool) -> None:
    """Stop the service and remove its file."""
    from mlx_router.config.defaults import default_config

    chosen = _service(readable_config(ctx) or default_config(current_home(ctx)), system)
    if not chosen.path.exists():
        click.echo(f"not installed: {chosen.path}")
        return
    for command in chosen.run(chosen.stop_commands, must=False):
        click.echo(f"ran: {command}")
    chosen.path.unlink()
    click.echo(f"removed {chosen.path}")


def _service(config: Config, system: bool) -> Service:
    import sys

    from mlx_router.supervisor.service import make_service

    return make_service(config, macos=sys.platform == "darwin", system=system)
