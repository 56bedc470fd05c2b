"""`mlx-router demo`: the main job, from nothing to the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from mlx_router.demo.story import Story


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print only the figures and what was checked, as JSON.")
@click.pass_context
def demo(ctx: click.Context, as_json: bool) -> None:
    """Run the whole system once on the embedded default.

    Trains a router if there is none, prepares the demo base and its adapters, serves them on free ports, asks, swaps
    an adapter under running streams, and stops. Exit status 0 only if all of it worked.
    """
    import asyncio
    import time

    from rich.console import Console

    from mlx_router.cli.context import current_home, echo_json
    from mlx_router.demo.prepare import choose_home, ensure_router, write_config
    from mlx_router.demo.stage import Stage

    console = Console(highlight=False, soft_wrap=True, stderr=as_json, quiet=as_json)
    began = time.monotonic()
    home, why = choose_home(current_home(ctx))
    console.print(f"[bold]mlx-router demo[/] in {home}")
    if why:
        console.print(f"  {why}, so the demo has a home of its own", style="dim")
    config = write_config(home)
    if ensure_router(home, config):
        console.print("  trained a router: there was none")
    paths = _prepare(home)
    prepared_s = time.monotonic() - began
    console.print(f"  prepared in {prepared_s:.1f} s; starting gateway and specialists", style="dim")
    stage = Stage(home, write_config(home, str(paths.base)))
    story = asyncio.run(_run(console, stage, paths))
    story.claim("every process has ended", not stage.left_behind)
    failed = [what for what, holds in story.claims if not holds]
    total_s = time.monotonic() - began
    if as_json:
        figures = {**story.figures.to_json(), "prepared_s": round(prepared_s, 1), "total_s": round(total_s, 1)}
        echo_json({"ok": not failed, "checks": len(story.claims), "failed": failed, "figures": figures})
    _finish(console, story, failed, total_s)
    if failed:
        from mlx_router.errors import SupervisorError

        raise SupervisorError(f"{len(failed)} of {len(story.claims)} checks failed; first: {failed[0]}")


async def _run(console: Console, stage: Any, paths: Any) -> Story:
    import aiohttp

    from mlx_router.demo.client import TIMEOUT_S, Client
    from mlx_router.demo.story import Story

    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with stage, aiohttp.ClientSession(timeout=timeout) as session:
        story = Story(console, Client(session, stage.processes["gateway"].url), stage)
        await story.tell(paths.revised, paths.adapters)
    return story


def _prepare(home: Path) -> Any:
    """Base and adapters, with a bar for each that has to be made."""
    from mlx_router.cli.bars import TaskBars
    from mlx_router.demo.prepare import ensure_adapters

    with TaskBars() as bars:
        return ensure_adapters(home, bars.draw)


def _finish(console: Console, story: Story, failed: list[str], total_s: float) -> None:
    from rich.rule import Rule

    from mlx_router.demo.story import figures_table

    console.print()
    console.print(Rule("What it took", align="left", style="cyan"))
    console.print(figures_table(story.figures))
    style, mark = ("bold red", "✗") if failed else ("bold green", "✓")
    good = len(story.claims) - len(failed)
    console.print(
        f"\n[{style}]{mark} {good} of {len(story.claims)} checks hold[/], everything stopped, {total_s:.1f} s in all"
    )
