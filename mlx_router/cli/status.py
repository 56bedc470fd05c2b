"""`mlx-router status`: what runs, as a live table."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

REFRESH_S = 1.0
LEFT = ("name", "state", "port")
COLUMNS = (*LEFT, "pid", "up", "starts", "memory", "cpu", "queue", "req", "req/s", "p50 ms", "tok/s")
SPARE = ("starts", "cpu", "pid", "up", "tok/s", "req/s")  # left out, in this order, where the terminal is narrow
_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "stopping": "yellow",
    "backing off": "red",
    "degraded": "red",
    "failed": "bold red",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything once as JSON.")
@click.option("--once", is_flag=True, help="Print the table once and leave.")
@click.pass_context
def status(ctx: click.Context, as_json: bool, once: bool) -> None:
    """Show what runs: processes, ports, memory, adapters, traffic.

    Live on a terminal, once elsewhere. Exit status 1 where nothing serves this home.
    """
    from mlx_router.cli.context import current_home, echo_json, readable_config
    from mlx_router.errors import SupervisorError

    home = current_home(ctx)
    record = running_record(home)
    if not (record and record.get("config_error")):  # else the record says it
        readable_config(ctx)
    if as_json:
        echo_json(record or {"state": "stopped", "home": str(home), "children": []})
        ctx.exit(0 if record else 1)
    if record is None:
        raise SupervisorError(f"nothing serves {home}; start with `mlx-router serve`")
    from rich.console import Console

    console = Console(highlight=False)
    if once or not console.is_terminal:
        console.print(table_of(record))
        return
    _live(console, home, record)


def running_record(home: Path) -> dict[str, Any] | None:
    """The record of the serve that runs; None where none does."""
    from mlx_router.supervisor.lock import holder
    from mlx_router.supervisor.record import read_record

    running = holder(home)
    record = read_record(home)
    if running is None or record is None or record.get("pid") != running.pid:
        return None
    return {**record, "stale_s": round(max(time.time() - float(record.get("updated_at", 0)), 0.0), 1)}


def _live(console: Any, home: Path, record: dict[str, Any] | None) -> None:
    from rich.live import Live

    try:
        with Live(table_of(record), console=console, refresh_per_second=4, transient=True) as live:
            while record is not None:
                live.update(table_of(record))
                time.sleep(REFRESH_S)
                record = running_record(home)
    except KeyboardInterrupt:
        return
    console.print("serve has ended")


def table_of(record: Mapping[str, Any] | None) -> RenderableType:
    """The table with what stands above and below it."""
    from rich.console import Group
    from rich.text import Text

    if record is None:
        return Text("nothing runs")
    state = str(record["state"])
    memory = record.get("memory") or {}
    head = Text.assemble(
        ("mlx-router ", "bold"),
        (state, _STYLES.get(state, "")),
        f"  process {record['pid']}, up {_span(time.time() - float(record['started_at']))}",
        f", {record.get('config') or 'built-in defaults'}",
    )
    if memory:
        head.append(
            f"\nmemory {_bytes(memory.get('available_bytes'))} of {_bytes(memory.get('total_bytes'))} available"
        )
    parts: list[RenderableType] = [head, _Children(record.get("children") or [])]
    problems = [
        ("configuration refused", record.get("config_error")),
        ("status not written", record.get("record_error")),
    ]
    for child in record.get("children") or []:
        if child.get("adapters") is not None:
            names = " ".join(child["adapters"]) or "none"
            parts.append(Text.assemble((f"{child['name']} holds ", "dim"), names))
        problems.append((child["name"], child.get("reason")))
        if child.get("log_error"):
            problems.append((f"{child['name']} log", f"{child['log_error']}, {child['log_lost_bytes']} bytes lost"))
    for what, problem in problems:
        if problem:
            parts.append(Text.assemble((f"{what}: ", "red"), str(problem)))
    parts += [Text(f"note: {notice}", style="yellow") for notice in record.get("notices") or []]
    if float(record.get("stale_s") or 0) > 5:
        parts.append(Text(f"this is {record['stale_s']} s old: serve does not write its record", style="red"))
    return Group(*parts)


class _Children:
    """The table of processes, without the spare columns for which there is no room."""

    def __init__(self, children: list[dict[str, Any]]) -> None:
        self._rows = [_cells(child) for child in children]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        tables = (self._table(SPARE[:count]) for count in range(len(SPARE)))
        room = options.update(max_width=10**4)
        fitting = (table for table in tables if console.measure(table, options=room).maximum <= options.max_width)
        yield next(fitting, self._table(SPARE))

    def _table(self, left_out: Sequence[str]) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, 1))
        titles = [title for title in COLUMNS if title not in left_out]
        for title in titles:
            table.add_column(title, justify="left" if title in LEFT else "right", no_wrap=True)
        for row in self._rows:
            table.add_row(*(row[title] for title in titles))
        return table


def _cells(child: Mapping[str, Any]) -> dict[str, RenderableType]:
    from rich.text import Text

    state = str(child["state"])
    shown = state if child.get("serving") or state != "ready" else "not ready"
    if child.get("next_start"):
        shown += f" {max(float(child['next_start']) - time.time(), 0):.0f} s"
    running, waiting = child.get("running"), child.get("waiting")
    cells = (
        str(child["name"]),
        Text(shown, style=_STYLES.get(state, "") if shown != "not ready" else "yellow"),
        str(child["port"]),
        _some(child.get("pid")),
        _span(time.time() - float(child["since"])) if child.get("pid") else "",
        _some(int(child.get("restarts") or 0) + 1),
        _bytes(child.get("memory_bytes")),
        _some(child.get("cpu_percent"), "%", digits=0),
        f"{running}+{waiting}" if running is not None else "",
        _some(child.get("requests")),
        _some(child.get("requests_per_s"), digits=1),
        _some(child.get("p50_ms"), digits=0),
        _some(child.get("tokens_per_s"), digits=0),
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _some(value: Any, unit: str = "", *, digits: int | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}{unit}" if digits is not None else f"{value}{unit}"


def _bytes(value: Any) -> str:
    if not isinstance(value, int):
        return ""
    return f"{value / 2**20:.0f} MiB" if value < 2**30 else f"{value / 2**30:.1f} GiB"


def _span(seconds: float) -> str:
    whole = int(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d"
