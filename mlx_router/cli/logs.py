"""`mlx-router logs`: what a process wrote."""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path
from typing import IO

import click

POLL_S = 0.2


@click.command()
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is being written, through rotations.")
@click.option("-n", "--lines", "count", type=click.IntRange(0), default=100, show_default=True, help="Last lines.")
@click.pass_context
def logs(ctx: click.Context, name: str | None, follow: bool, count: int) -> None:
    """Print or follow the log of a process: gateway, a specialist's name, or serve itself.

    Without NAME, list the logs that there are.
    """
    from mlx_router.cli.context import current_home
    from mlx_router.config.parse import suggest
    from mlx_router.errors import SupervisorError

    folder = current_home(ctx) / "log"
    known = sorted(path.stem for path in folder.glob("*.log"))
    if name is None:
        for item in known:
            click.echo(item)
        if not known:
            click.echo(f"no logs in {folder} yet", err=True)
        return
    path = folder / f"{name}.log"
    if name not in known and not (follow and name == Path(name).name):
        there = ", ".join(known) or "none"
        raise SupervisorError(f"no log {name!r} in {folder}; there is: {there}{suggest(name, known)}")
    file = _print_end(path, count)
    if follow:
        _follow(path, file)
    elif file is not None:
        file.close()


def _print_end(path: Path, count: int) -> IO[str] | None:
    """The last `count` lines, of the rotated file too where the current one is short: that one, read to its end."""
    last: deque[str] = deque(maxlen=count)
    older = path.with_name(f"{path.name}.1")
    if older.is_file():
        with older.open(encoding="utf-8", errors="replace") as file:
            last.extend(file)
    current = path.open(encoding="utf-8", errors="replace") if path.is_file() else None
    if current is not None:
        last.extend(iter(current.readline, ""))
    for line in last:
        click.echo(line, nl=False)
    return current


def _follow(path: Path, file: IO[str] | None) -> None:
    """Print what is appended after the place where `file` is, until interrupted."""
    try:
        while True:
            replaced = path.is_file() and (file is None or _replaced(file, path))
            if file is not None:
                while chunk := file.read(2**16):
                    click.echo(chunk, nl=False)
            if replaced:  # what was written before that has just been read
                if file is not None:
                    file.close()
                file = path.open(encoding="utf-8", errors="replace")
                continue
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        pass
    finally:
        if file is not None:
            file.close()


def _replaced(file: IO[str], path: Path) -> bool:
    """Whether another file stands at `path` now, or the same one was cut."""
    try:
        now = path.stat()
    except OSError:
        return False
    then = os.fstat(file.fileno())
    return (now.st_ino, now.st_dev) != (then.st_ino, then.st_dev) or now.st_size < file.tell()
