"""`mlx-router router embed`: embeddings of a corpus that does not fit in memory."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("source", type=click.Path(dir_okay=False))
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--field", default="text", show_default=True, help="Of each line's object.")
@click.option("--runtime", type=click.Choice(["auto", "mlx", "onnx"]), help="What runs the encoder.")
@click.option("--encoder", "encoder_path", metavar="PATH", help="Folder with model.safetensors and tokenizer.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def embed(
    ctx: click.Context,
    source: str,
    out: str,
    field: str,
    runtime: str | None,
    encoder_path: str | None,
    as_json: bool,
) -> None:
    """Embed every line of SOURCE (JSONL) into .npy shards under OUT.

    Goes on where an earlier run was cut off. Under `mlx.launch` all machines share the work.
    """
    import time

    from mlx_router.cli.context import current_config, echo_json
    from mlx_router.cli.options import open_encoder
    from mlx_router.cli.progress import RichProgress
    from mlx_router.training.distributed import shared
    from mlx_router.training.stream import count_rows, embed_file

    config = current_config(ctx)
    encoder = open_encoder(config, runtime, encoder_path)
    with shared(encoder) as common:
        if common is None:
            return
        began = time.monotonic()
        total = count_rows(Path(source))
        with RichProgress() as progress:
            done = embed_file(Path(source), Path(out), common, field=field, progress=progress.encoding(total))
    seconds = time.monotonic() - began
    if as_json:
        rate = round(done.encoded / seconds, 1) if seconds else None
        echo_json({"rows": done.rows, "shards": done.shards, "encoded": done.encoded, "texts_per_s": rate})
        return
    shards = f"{done.shards} shard{'' if done.shards == 1 else 's'}"
    click.echo(f"{done.rows} rows in {shards} under {out}, {done.encoded} encoded in {seconds:.1f} s")
