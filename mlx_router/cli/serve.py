"""`mlx-router serve` and `mlx-router stop`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlx_router.config import Config

PORT = click.IntRange(0, 65535)


@click.command()
@click.option("--gateway-port", type=PORT, metavar="PORT", help="Of the gateway; 0 takes a free one.")
@click.option(
    "--port",
    "ports",
    multiple=True,
    metavar="NAME=PORT",
    help="Of a specialist, or the gateway; 0 takes a free one. May be repeated.",
)
@click.option("--free-ports", is_flag=True, help="Take a free port for every process.")
@click.option("--check", "check_only", is_flag=True, help="Validate the configuration, estimate memory, start nothing.")
@click.option("--parent-pid", type=int, hidden=True, help="Stop when this process is no longer our parent.")
@click.pass_context
def serve(
    ctx: click.Context,
    gateway_port: int | None,
    ports: tuple[str, ...],
    free_ports: bool,
    check_only: bool,
    parent_pid: int | None,
) -> None:
    """Run gateway and specialists, and keep them alive.

    Stays in the foreground. Ctrl-C (or SIGTERM) lets running answers end, then stops; SIGHUP, or a saved configuration
    file, puts changed routes, policy and adapters into force without dropping a request.
    """
    import asyncio

    from mlx_router.supervisor.lock import hold
    from mlx_router.supervisor.ports import check_free
    from mlx_router.supervisor.record import end_leftovers
    from mlx_router.supervisor.spec import child_specs
    from mlx_router.supervisor.supervisor import Supervisor

    given = _read_ports(ports)
    if gateway_port is not None:
        given["gateway"] = gateway_port
    config, read, fixed = _load(ctx, given, free_ports)
    if check_only:
        _show_check(config)
        return
    with hold(config.home, str(config.path) if config.path else None) as holder:
        if gone := end_leftovers(config.home, patience_s=config.supervisor.grace_s):
            _say(f"ended what an earlier serve left behind: {', '.join(f'process {pid}' for pid in gone)}")
        check_free(child_specs(config, holder.pid, fixed))
        for notice in (*config.notices, *_router_notice(config)):
            _say(f"note: {notice}")
        _say(f"serving {config.home} with {config.path or 'built-in defaults'} (process {holder.pid})")
        supervisor = Supervisor(config, holder, read=read, say=_say, ports=fixed, parent_pid=parent_pid)
        asyncio.run(supervisor.run())


@click.command()
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), metavar="SECONDS", help="Longest wait.")
@click.option("--kill", "kill", is_flag=True, help="Do not wait for running answers.")
@click.pass_context
def stop(ctx: click.Context, timeout_s: float | None, kill: bool) -> None:
    """Stop a running `serve` after its requests have ended."""
    import os
    import signal
    from contextlib import suppress

    from mlx_router.cli.context import current_home, readable_config
    from mlx_router.config.defaults import default_config
    from mlx_router.errors import SupervisorError
    from mlx_router.supervisor.lock import holder

    home = current_home(ctx)
    running = holder(home)
    if running is None:
        raise SupervisorError(f"nothing serves {home}")
    if timeout_s is None:
        config = readable_config(ctx) or default_config(home)
        drains = [config.gateway.drain_timeout_s, max((item.drain_s for item in config.specialists), default=0.0)]
        timeout_s = sum(drains) + 2 * config.supervisor.grace_s + 5.0
    with suppress(ProcessLookupError):
        os.kill(running.pid, signal.SIGTERM)
        if kill:
            _wait(lambda: _stopping(home) or not running.alive, 5.0)
            os.kill(running.pid, signal.SIGTERM)
    if not _wait(lambda: not running.alive, timeout_s):
        raise SupervisorError(
            f"process {running.pid} still runs after {timeout_s:g} s; `mlx-router stop --kill` ends it"
        )
    click.echo(f"stopped (process {running.pid})")


def _load(
    ctx: click.Context, given: dict[str, int], free_ports: bool
) -> tuple[Config, Callable[[], Config], dict[str, int]]:
    """The configuration with every port known, how to read it again, and the ports that the file does not give."""
    from mlx_router.cli.context import current_home
    from mlx_router.config import load_config
    from mlx_router.config.environment import with_ports
    from mlx_router.config.known import known_names
    from mlx_router.config.parse import suggest
    from mlx_router.errors import ConfigError
    from mlx_router.supervisor.ports import free_ports as find_ports

    home = current_home(ctx)
    config = load_config(ctx.find_root().obj["config"], home, known=known_names(home), ports=given)
    names = {"gateway": config.gateway.port, **{item.name: item.port for item in config.specialists}}
    if unknown := sorted(set(given) - set(names)):
        wrong = ", ".join(f"{name!r}{suggest(name, names)}" for name in unknown)
        raise ConfigError(f"a port is given for what is not configured: {wrong}")
    open_names = [name for name, port in names.items() if port == 0 or (free_ports and name not in given)]
    fixed = {**given, **find_ports(open_names)}
    path = config.path

    def read() -> Config:
        found = load_config(path, home, known=known_names(home), ports=fixed)
        if fresh := [item.name for item in found.specialists if item.port == 0]:
            raise ConfigError(
                f"specialist {fresh[0]!r}: port 0 is chosen when serve starts; give it a port, or restart"
            )
        return found

    return with_ports(config, fixed), read, fixed


def _read_ports(ports: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in ports:
        name, _, number = item.rpartition("=")
        if not number.isdigit() or int(number) > 65535:
            raise click.BadParameter(f"{item!r} is not NAME=PORT, ports up to 65535", param_hint="--port")
        found[name or "gateway"] = int(number)
    return found


def _router_notice(config: Config) -> list[str]:
    from mlx_router.artifacts.store import RouterStore

    if RouterStore(config.home).current() is not None:
        return []
    return ["no router version yet, so ailiance/auto cannot route: `mlx-router router train`"]


def _show_check(config: Config) -> None:
    from mlx_router.supervisor.memory import check_memory

    needs = check_memory(config)
    click.echo(f"{config.path or 'built-in defaults'}: no problems")
    for notice in (*config.notices, *_router_notice(config)):
        click.echo(f"note: {notice}")
    for need in needs:
        click.echo(f"memory: {need.describe()}")


def _stopping(home: Path) -> bool:
    from mlx_router.supervisor.record import read_record

    return (read_record(home) or {}).get("state") == "stopping"


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)
