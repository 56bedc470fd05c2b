"""`mlx-router adapter train` and `adapter check`: how an adapter is made, and what stands before its traffic."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from mlx_router.cli.context import current_config, echo_json
from mlx_router.errors import AdapterError
from mlx_router.lora.registry import Registry

base_option = click.option("--base", metavar="BASE", help="A path, a hub name or 'demo' (default: its specialist's).")
data_option = click.option(
    "--data", metavar="DIR", type=click.Path(exists=True, file_okay=False), help="Folder of <adapter>/*.jsonl files."
)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@base_option
@click.option("--base-name", default="", hidden=True)
@data_option
@click.option("--out", metavar="DIR", type=click.Path(file_okay=False), help="Write to DIR/NAME, install nothing.")
@click.option("--recipe", type=click.Choice(["default", "demo"]), help="To start from (default: fits the base).")
@click.option("--iters", type=int, help="Batches.")
@click.option("--batch-size", type=int, help="Rows of a batch.")
@click.option("--rank", type=int, help="Of every update.")
@click.option("--scale", type=float, help="Of every update.")
@click.option("--learning-rate", type=float, help="Highest; a cosine follows.")
@click.option("--num-layers", type=int, help="The last ones; -1: all.")
@click.option("--key", "keys", multiple=True, metavar="MODULE", help="Module to adapt, such as self_attn.q_proj.")
@click.option("--max-tokens", type=int, help="Of a row; longer ones are cut.")
@click.option("--replay", type=float, help="General rows mixed in, as a share of the adapter's own.")
@click.option("--grad-checkpoint", is_flag=True, default=None, help="Slower, in less memory.")
@click.option("--seed", type=click.IntRange(0), help="Of weights and order.")
@click.option("--revised", is_flag=True, help="Take the answers of revised.jsonl where it has the question.")
@click.option("--check/--no-check", default=True, show_default=True, help="Compare with the base before it serves.")
@click.option("--progress-lines", is_flag=True, hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    names: tuple[str, ...],
    base: str | None,
    base_name: str,
    data: str | None,
    out: str | None,
    recipe: str | None,
    revised: bool,
    check: bool,
    progress_lines: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train LoRA adapters on <data>/NAME/train.jsonl, compare them with the base, and serve those that are better."""
    from mlx_router import resources
    from mlx_router.cli import adapter_training as training
    from mlx_router.cli.bars import TaskBars
    from mlx_router.cli.specialists import base_of

    config = current_config(ctx)
    registry = Registry(config.home)
    manifests = {name: registry.manifest(name) for name in dict.fromkeys(names)}
    bench = training.Bench(config, base, Path(data) if data else resources.specialists_dir(), base_name)
    for name in manifests if out else ():
        training.check_target(Path(str(out)) / name)
    jobs = []
    for name, manifest in manifests.items():  # what needs no base to be refused is, before one is made
        chosen = base or base_of(config, name, manifest.specialist)
        made = training.make_recipe(recipe or ("demo" if chosen == "demo" else "default"), options)
        jobs.append((name, made, bench.files(name, made, revised=revised)))
    results = []
    with nullcontext() if progress_lines or as_json else TaskBars() as bars:
        draw = training.line_writer() if progress_lines else (bars.draw if bars else _silent)
        for name, made, files in jobs:
            results.append(
                training.train_one(
                    bench, registry, name, made, files, draw, out=Path(out) if out else None, check=check
                )
            )
    if progress_lines:
        return
    if as_json:
        echo_json(results if len(results) > 1 else results[0])
        return
    for item in results:
        verdict = "" if item.get("check", {}).get("passed", True) else f"; quarantined: {item['check']['reason']}"
        click.echo(
            f"{item['adapter']}: {item['digest'][:19]}, {item['rows']} rows,"
            f" training loss {item['train_loss']:.3f} (mean of its last batches), {item['seconds']} s{verdict}"
        )
        click.echo(f"  {item['path']}")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="Every adapter that has weights.")
@click.option("--version", help="An installed version (the start of its digest; default: the current one).")
@base_option
@data_option
@click.option("--quarantine/--no-quarantine", default=True, show_default=True, help="Take a worse one out of traffic.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
@click.pass_context
def check(
    ctx: click.Context,
    names: tuple[str, ...],
    every: bool,
    version: str | None,
    base: str | None,
    data: str | None,
    quarantine: bool,
    as_json: bool,
) -> None:
    """Compare adapters with their base: files, held-out rows, general rows. A worse one is quarantined (exit 1)."""
    from rich.console import Console

    from mlx_router import resources
    from mlx_router.cli import adapter_training as training
    from mlx_router.cli.adapter_tables import check_table
    from mlx_router.cli.specialists import places, unload_everywhere

    config = current_config(ctx)
    registry = Registry(config.home)
    bench = training.Bench(config, base, Path(data) if data else resources.specialists_dir())
    reports = []
    for name in training.chosen_names(registry, names, every):
        item = registry.find(name)
        path = registry.version(name, version)
        folder, _ = bench.base(name, item.specialist)
        report = bench.check(folder, path, name)
        reports.append(report)
        if quarantine:
            training.record(registry, name, path.name, report)
            if not report.passed and path == item.path:
                unload_everywhere(places(config, item), name)
        if not as_json:
            Console(highlight=False).print(check_table(report))
    if as_json:
        echo_json([report.to_json() for report in reports])
    failed = [f"{report.name}: {report.reason}" for report in reports if not report.passed]
    if failed:
        raise AdapterError("; ".join(failed))


def _silent(name: str, done: int, total: int, note: str) -> None:
    return None
