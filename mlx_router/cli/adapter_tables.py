"""Tables of `mlx-router adapter`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from mlx_router.lora.check import Report
    from mlx_router.lora.registry import AdapterRecord

STYLES = {"active": "green", "missing": "yellow", "quarantined": "bold red"}


def adapters_table(records: Iterable[AdapterRecord], resident: Mapping[str, Sequence[str]]) -> Table:
    """One line an adapter; `resident`: adapter -> specialists that hold it now, marked ●."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("adapter", "domains", "specialist", "status", "version"):
        table.add_column(name, no_wrap=name != "domains", overflow="fold")
    for item in records:
        style = STYLES[item.status]
        holders = resident.get(item.name, ())
        where = f"[green]{', '.join(holders)}[/] ●" if holders else item.specialist
        note = f" ({item.reason})" if item.status == "quarantined" else ""
        table.add_row(
            item.name,
            ", ".join(item.domains) + note,
            where,
            f"[{style}]{item.status}[/]",
            (item.version or "–") + (" pinned" if item.pinned else ""),
        )
    return table


def record_table(item: AdapterRecord, live: Sequence[Mapping[str, Any]]) -> Table:
    """Everything about one adapter."""
    table = Table(show_header=False, title=item.name, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    manifest = item.manifest
    rows: dict[str, str] = {
        "title": item.title,
        "domains": ", ".join(item.domains) or "–",
        "stands in for": ", ".join(manifest.stands_in),
        "specialist": item.specialist,
        "status": item.status + (f": {item.reason}" if item.reason else ""),
        "pinned": "yes" if item.pinned else "no",
        "base": manifest.base,
        "source": manifest.source + (f" at {manifest.revision}" if manifest.revision else ""),
        "licence": manifest.licence,
        "rank, scale": f"{manifest.rank}, {manifest.scale:g}",
        "targets": ", ".join(manifest.targets),
        "digest": item.sha256 or manifest.sha256 or "–",
        "path": str(item.path) if item.path else "–",
        "versions": ", ".join(f"{name} (current)" if name == item.version else name for name in item.versions),
    }
    for look in manifest.evaluation.get("looks", []):
        rows[f"check: {look['name']}"] = f"base {_figure(look['base'])}, adapter {_figure(look['adapter'])}"
    for entry in live:
        state, count = entry.get("state", "unknown"), entry.get("requests", 0)
        requests = f"{count} request{'' if count == 1 else 's'}"
        rows[f"on {entry['specialist']}"] = f"{state}, {requests}, {entry.get('digest') or '–'}"
    for key, value in rows.items():
        if value:
            table.add_row(key, value)
    return table


def check_table(report: Report) -> Table:
    """One line a look."""
    verdict = "[green]passed[/]" if report.passed else "[bold red]failed[/]"
    table = Table(title=f"{report.name} {report.digest[7:19]}: {verdict}", title_justify="left")
    for name in ("look", "base", "adapter", "limit", ""):
        table.add_column(name, justify="left" if name in ("look", "") else "right", overflow="fold")
    for look in report.looks:
        mark = "[green]ok[/]" if look.passed else "[bold red]worse[/]"
        table.add_row(look.name, _figure(look.base), _figure(look.adapter), _figure(look.limit), mark)
    return table


def swap_lines(result: Mapping[str, Any]) -> list[str]:
    """What a swap did, in words."""
    old = (result["previous_digest"] or "nothing")[:19]
    lines = [f"{result['adapter']}: {old} -> {result['digest'][:19]} in {result['ms']:.0f} ms"]
    for reply in result["servers"]:
        ms = reply.get("ms", {})
        parts = ", ".join(f"{key} {value:.1f}" for key, value in ms.items())
        lines.append(f"  {reply['specialist']} ({reply['url']}): {reply.get('status', 'loaded')}, ms: {parts}")
    if not result["servers"]:
        lines.append("  no specialist that holds it runs; it is served from the next start")
    return lines


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
