"""`mlx-router router …`: train, inspect, activate, roll back, import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_router.artifacts.meta import read_meta
from mlx_router.artifacts.store import RouterStore
from mlx_router.cli.context import current_config, current_home, echo_json
from mlx_router.cli.embed import embed

if TYPE_CHECKING:
    from mlx_router.training.train import Result


@click.group()
def router() -> None:
    """Train, inspect, activate and roll back router versions."""


router.add_command(embed)


@router.command()
@click.option("--data", "data", metavar="DIR", help="Folder of <label>.jsonl files (default: the shipped corpus).")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the corpus.")
@click.option("--seed", type=click.IntRange(0), help="Of split, initial weights and order.")
@click.option("--loss", type=click.Choice(["bce", "ce", "both"]), help="What is minimised.")
@click.option("--heads", type=click.IntRange(1), help="Fitted with different seeds and folded into one.")
@click.option("--runtime", type=click.Choice(["auto", "mlx", "onnx"]), help="What runs the encoder.")
@click.option("--encoder", "encoder_path", metavar="PATH", help="Folder with model.safetensors and tokenizer.json.")
@click.option("--activate/--no-activate", default=True, show_default=True, help="Serve the new version at once.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def train(
    ctx: click.Context,
    data: str | None,
    epochs: int | None,
    seed: int | None,
    loss: str | None,
    heads: int | None,
    runtime: str | None,
    encoder_path: str | None,
    activate: bool,
    as_json: bool,
) -> None:
    """Train a new router version and make it the active one."""
    from mlx_router.cli.options import corpus_folder, open_encoder
    from mlx_router.cli.progress import RichProgress
    from mlx_router.training.corpus import read_corpus
    from mlx_router.training.distributed import shared
    from mlx_router.training.fit import Recipe
    from mlx_router.training.train import train_router

    config, folder = current_config(ctx), corpus_folder(data)
    given: dict[str, Any] = {"epochs": epochs, "seed": seed, "loss": loss, "heads": heads}
    recipe = Recipe(**{key: value for key, value in given.items() if value is not None})
    encoder = open_encoder(config, runtime, encoder_path)
    with shared(encoder) as common:
        if common is None:  # another rank trains with what this one has computed
            return
        corpus = read_corpus(folder)
        with RichProgress() as progress:
            result = train_router(corpus, common, config.home, recipe, progress, activate=activate)
    if as_json:
        echo_json({"version": result.version, "path": str(result.folder), "metrics": result.metrics})
        return
    _show_result(result, activate)


@router.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.pass_context
def list_versions(ctx: click.Context, as_json: bool) -> None:
    """List versions, the active one marked."""
    from mlx_router.errors import VersionCorrupt

    store = RouterStore(current_home(ctx))
    current = store.current()
    rows: list[dict[str, Any]] = []
    for version in store.versions():
        row: dict[str, Any] = {"version": version, "active": version == current}
        try:
            meta = read_meta(store.path(version))
            row |= {"domains": len(meta.domains), "hidden": meta.hidden_dim, "metrics": dict(meta.metrics)}
        except VersionCorrupt as error:
            row["error"] = error.message.splitlines()[0]
        rows.append(row)
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo("no versions yet; train one with `mlx-router router train`")
    for row in rows:
        figures = "  ".join(f"{key} {value:.3f}" for key, value in row.get("metrics", {}).items() if key != "n")
        mark = "*" if row["active"] else " "
        click.echo(f"{mark} {row['version']}  {row.get('error') or str(row['domains']) + ' domains'}  {figures}")


@router.command()
@click.argument("version", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print meta.json as it is.")
@click.pass_context
def show(ctx: click.Context, version: str | None, as_json: bool) -> None:
    """Show a version's report (default: the active one)."""
    store, name = _resolve(ctx, version)
    folder = store.path(name)
    if as_json:
        read_meta(folder)
        click.echo((folder / "meta.json").read_text(encoding="utf-8"), nl=False)
        return
    report = folder / "report.md"
    click.echo(f"{name} in {folder}\n")
    click.echo(report.read_text(encoding="utf-8") if report.is_file() else "no report: this version was imported")


@router.command()
@click.argument("version")
@click.pass_context
def activate(ctx: click.Context, version: str) -> None:
    """Verify VERSION and serve it from now on."""
    RouterStore(current_home(ctx)).activate(version)
    click.echo(f"{version} is active")


@router.command()
@click.pass_context
def rollback(ctx: click.Context) -> None:
    """Return to the version that was active before."""
    store = RouterStore(current_home(ctx))
    left = store.current()
    click.echo(f"{store.rollback()} is active (was {left})")


@router.command()
@click.argument("version", required=False)
@click.pass_context
def verify(ctx: click.Context, version: str | None) -> None:
    """Check every hash of a version (default: the active one)."""
    from mlx_router.head.weights import load_version

    store, name = _resolve(ctx, version)
    load_version(store.verify(name))
    click.echo(f"{name}: every file is as it was published")


@router.command("import")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.option("--activate/--no-activate", default=False, show_default=True, help="Serve it at once.")
@click.pass_context
def import_version(ctx: click.Context, directory: str, activate: bool) -> None:
    """Import a checkpoint of the original system: router.safetensors, meta.json, label_map.json."""
    from mlx_router.head.importing import import_checkpoint

    store = RouterStore(current_home(ctx))
    version = import_checkpoint(store, Path(directory))
    if activate:
        store.activate(version)
    click.echo(
        f"imported as {version}" + ("; it is active" if activate else f"; `router activate {version}` serves it")
    )


@router.command()
@click.argument("version", required=False)
@click.pass_context
def provenance(ctx: click.Context, version: str | None) -> None:
    """Print the Annex IV record of a version (default: the active one)."""
    store, name = _resolve(ctx, version)
    click.echo((store.verify(name) / "provenance.json").read_text(encoding="utf-8"), nl=False)


@router.command("eval")
@click.option(
    "--data",
    "data",
    required=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="One row a line; rows of a corpus are understood too.",
)
@click.option("--router", "version", metavar="VERSION", help="A router version (default: the active one).")
@click.option("--runtime", type=click.Choice(["auto", "mlx", "onnx"]), help="What runs the encoder.")
@click.option("--encoder", "encoder_path", metavar="PATH", help="Folder with model.safetensors and tokenizer.json.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON.")
@click.pass_context
def evaluate(
    ctx: click.Context,
    data: str,
    version: str | None,
    runtime: str | None,
    encoder_path: str | None,
    as_json: bool,
) -> None:
    """Measure a version on prompts with known answers: rows {"text", "label", "also", "lang"}."""
    from mlx_router.cli.evaluation import evaluate_file, show_evaluation
    from mlx_router.cli.route import load_router

    figures = evaluate_file(load_router(ctx, version, runtime, encoder_path), Path(data))
    if as_json:
        echo_json(figures)
    else:
        show_evaluation(figures)


def _resolve(ctx: click.Context, version: str | None) -> tuple[RouterStore, str]:
    from mlx_router.errors import VersionNotFound

    store = RouterStore(current_home(ctx))
    name = version or store.current()
    if name is None:
        raise VersionNotFound(f"no router version in {store.root}; train one with `mlx-router router train`")
    return store, name


def _show_result(result: Result, activated: bool) -> None:
    from rich.console import Console

    from mlx_router.cli.tables import figures_table

    console = Console(highlight=False)
    test = result.metrics["test"]
    console.print(figures_table("Test rows", {"all": test, **test["by_language"]}))
    rejected = result.metrics["rejection"]
    if rejected["outside_n"]:
        console.print(
            f"outside prompts sent to the fallback {rejected['outside_caught']:.1%} of {rejected['outside_n']}, "
            f"labelled prompts rejected {rejected['inside_rejected']:.1%} of {rejected['inside_n']}"
        )
    console.print(f"[bold]{result.version}[/] {'is active' if activated else 'was published, not activated'}")
    console.print(f"report: {result.folder / 'report.md'}", soft_wrap=True)
