"""`mlx-router route`: classify prompts from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING

import click

from mlx_router.cli.context import current_config
from mlx_router.errors import InvalidRequest

if TYPE_CHECKING:
    from mlx_router.head.decision import Decision
    from mlx_router.head.router import Router

CHUNK = 512  # lines read, sorted by length and encoded together


@click.command()
@click.argument("prompt", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the decision as one JSON object.")
@click.option(
    "--jsonl",
    "lines",
    type=click.File("rb"),
    metavar="FILE|-",
    help='Read {"text": …} a line, write one decision a line, in order.',
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Scores to show.")
@click.option("--router", "version", metavar="VERSION", help="A router version (default: the active one).")
@click.option("--runtime", type=click.Choice(["auto", "mlx", "onnx"]), help="What runs the encoder.")
@click.option("--encoder", "encoder_path", metavar="PATH", help="Folder with model.safetensors and tokenizer.json.")
@click.pass_context
def route(
    ctx: click.Context,
    prompt: str | None,
    as_json: bool,
    lines: IO[bytes] | None,
    top: int,
    version: str | None,
    runtime: str | None,
    encoder_path: str | None,
) -> None:
    """Say where PROMPT goes, and why. Without PROMPT, read it from standard input."""
    if prompt is not None and lines is not None:
        raise click.UsageError("give either PROMPT or --jsonl, not both")
    if prompt is None and lines is None:
        if sys.stdin.isatty():
            raise click.UsageError("give a PROMPT, --jsonl FILE, or pipe a prompt in")
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
    from mlx_router.cli.targets import Targets

    router = load_router(ctx, version, runtime, encoder_path)
    targets = Targets(current_config(ctx))
    if lines is not None:
        for decision in _route_lines(router, lines, top):
            click.echo(json.dumps(targets.of(decision).to_json(), ensure_ascii=False))
        return
    decision = targets.of(router.route(prompt or "", top=top))
    if as_json:
        click.echo(json.dumps(decision.to_json(), ensure_ascii=False))
    else:
        _show(decision)


def load_router(ctx: click.Context, version: str | None, runtime: str | None, encoder_path: str | None) -> Router:
    """The router that the options name; a corrupt active version is said on stderr."""
    from mlx_router.cli.options import encoder_config
    from mlx_router.head.router import Router

    config = current_config(ctx)
    router = Router.load(config.home, version=version, encoder=encoder_config(config, runtime, encoder_path))
    if router.notice:
        click.echo(f"warning: {router.notice}", err=True)
    return router


def _route_lines(router: Router, lines: Iterable[bytes], top: int) -> Iterator[Decision]:
    numbered = enumerate(lines, start=1)
    while chunk := list(islice(numbered, CHUNK)):
        yield from router.route_many([_text(line, number) for number, line in chunk if line.strip()], top=top)


def _text(line: bytes, number: int) -> str:
    try:
        value = json.loads(line.decode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"line {number}: not JSON: {error.msg} at column {error.colno}") from error
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise InvalidRequest(f'line {number}: expected {{"text": "…"}}, got {line[:80].decode("utf-8", "replace")!r}')
    return text


def _show(decision: Decision) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    headline = Text.assemble(("→ ", "dim"), (decision.domain, "bold green"), f"  {decision.score:.3f}  ")
    headline.append(f"({decision.reason}, router {decision.router}, {decision.encode_ms:.1f} ms)", "dim")
    console.print(headline)
    table = Table(box=None, show_header=False, padding=(0, 1))
    chosen = {selection.domain for selection in decision.selections}
    for label, score in decision.scores:
        bar = "█" * round(score * 30)
        table.add_row(label, f"{score:.3f}", Text(bar, style="green" if label in chosen else "dim"))
    console.print(table)
