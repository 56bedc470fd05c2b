"""`mlx-router adapter …`: files first, and running servers where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_router.cli.adapter_gate import check, train
from mlx_router.cli.context import current_config, current_home, echo_json, readable_config
from mlx_router.cli.specialists import must_be_up, places, unload_everywhere, up
from mlx_router.errors import AdapterError, AdapterNotFound, AdapterQuarantined
from mlx_router.lora.registry import Registry

if TYPE_CHECKING:
    from mlx_router.lora.registry import AdapterRecord

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
at_option = click.option("--at", metavar="URL", default="", help="This server, instead of those of the configuration.")
folder_type = click.Path(exists=True, file_okay=False)


@click.group()
def adapter() -> None:
    """List, install, load, swap, train and check adapters."""


@adapter.command("list")
@as_json_option
@click.pass_context
def list_adapters(ctx: click.Context, as_json: bool) -> None:
    """List every adapter: domains, status, installed version, and who holds it now."""
    records = Registry(current_home(ctx)).records()
    config = readable_config(ctx)
    resident: dict[str, list[str]] = {}
    for place in places(config) if config else ():
        for entry in (place.adapters() or {}).get("data", []):
            if entry.get("state") == "resident":
                resident.setdefault(entry["id"], []).append(place.specialist)
    if as_json:
        echo_json([{**_plain(item), "resident_on": resident.get(item.name, [])} for item in records])
        return
    from mlx_router.cli.adapter_tables import adapters_table

    _print(adapters_table(records, resident))


@adapter.command()
@click.argument("name")
@at_option
@as_json_option
@click.pass_context
def show(ctx: click.Context, name: str, at: str, as_json: bool) -> None:
    """Show everything about the adapter NAME."""
    item = Registry(current_home(ctx)).find(name)
    live = []
    for place in places(current_config(ctx), item, at) if readable_config(ctx) else ():
        for entry in (place.adapters() or {}).get("data", []):
            if entry.get("id") == name:
                live.append({"specialist": place.specialist, "url": place.url, **entry})
    if as_json:
        echo_json({**_plain(item), "servers": live})
        return
    from mlx_router.cli.adapter_tables import record_table

    _print(record_table(item, live))


@adapter.command()
@click.argument("name")
@click.argument("path", required=False, type=folder_type)
@click.option("--hub", metavar="OWNER/NAME", help="Fetch the weights from the model hub.")
@click.option("--revision", default="", help="Of the hub repository.")
@click.option("--title", help="Of an adapter that has no manifest yet.")
@click.option("--domain", "domains", multiple=True, help="That it answers; may be given several times.")
@click.option("--specialist", default="hardware", show_default=True, help="That holds a new adapter.")
@click.option("--activate/--no-activate", default=True, show_default=True, help="Make the weights the current ones.")
@as_json_option
@click.pass_context
def add(
    ctx: click.Context,
    name: str,
    path: str | None,
    hub: str | None,
    revision: str,
    title: str | None,
    domains: tuple[str, ...],
    specialist: str,
    activate: bool,
    as_json: bool,
) -> None:
    """Install the weights in PATH (mlx-lm's format or PEFT's) for the adapter NAME.

    Without PATH they come from the hub that the manifest or --hub names. A NAME without a manifest gets one.
    """
    from mlx_router.lora.manifest import LOCAL

    registry = Registry(current_home(ctx))
    with _manifest(registry, name, title, domains, specialist):
        origin = hub
        if path is None and hub is None:
            manifest = registry.manifest(name)
            if manifest.source == LOCAL:
                raise click.UsageError(f"{name} has no hub source: give the PATH of its weights")
            origin, revision = manifest.source, revision or manifest.revision
        source = Path(path) if path else _fetch(str(origin), revision)
        done = registry.install(
            name, source, activate=activate, origin=None if path else origin, revision="" if path else revision
        )
    _say(
        as_json,
        {"adapter": name, "digest": done.digest, "previous_digest": done.previous, "path": str(done.path)},
        f"{name}: {done.digest[:19]} is {'current' if activate else 'installed'}; `mlx-router adapter check {name}`"
        f" compares it with its base, `mlx-router adapter load {name}` brings it to a running server",
    )


@adapter.command("import")
@click.argument("name")
@click.argument("directory", type=folder_type)
@click.option("--title", help="Of an adapter that has no manifest yet.")
@click.option("--domain", "domains", multiple=True, help="That it answers; may be given several times.")
@click.option("--specialist", default="hardware", show_default=True, help="That holds a new adapter.")
@click.option("--sha256", help="That the PEFT weights must have.")
@click.option("--activate/--no-activate", default=True, show_default=True, help="Make the weights the current ones.")
@as_json_option
@click.pass_context
def import_adapter(
    ctx: click.Context,
    name: str,
    directory: str,
    title: str | None,
    domains: tuple[str, ...],
    specialist: str,
    sha256: str | None,
    activate: bool,
    as_json: bool,
) -> None:
    """Convert the PEFT adapter in DIRECTORY to mlx-lm's format and install it, with where it came from."""
    import tempfile

    from mlx_router.lora.convert import convert_peft
    from mlx_router.lora.files import adapter_digest

    registry = Registry(current_home(ctx))
    with tempfile.TemporaryDirectory() as folder:
        files = convert_peft(directory, folder, sha256=sha256)
        provenance = {
            "name": name,
            "made_by": "mlx-router adapter import",
            "source": {"format": "peft", "path": str(Path(directory).resolve()), "digest": adapter_digest(directory)},
            "adapter": {"digest": files.digest},
        }
        with _manifest(registry, name, title, domains, specialist):
            done = registry.install(name, Path(folder), activate=activate, verify=False, provenance=provenance)
    _say(
        as_json,
        {"adapter": name, "digest": done.digest, "previous_digest": done.previous, "path": str(done.path)},
        f"{name}: imported {len(files.modules)} modules of rank {files.rank} as {done.digest[:19]}",
    )


@adapter.command()
@click.argument("name")
@click.option("--version", help="Only this one (the start of its digest).")
@at_option
@as_json_option
@click.pass_context
def remove(ctx: click.Context, name: str, version: str | None, at: str, as_json: bool) -> None:
    """Delete the weights installed for NAME, after unloading them; its own manifest too, if it is not a shipped one."""
    registry = Registry(current_home(ctx))
    item = registry.find(name)
    current = version is None or registry.version(name, version).name == item.version
    unloaded = unload_everywhere(places(current_config(ctx), item, at), name) if current else []
    removed = registry.remove(name, version)
    text = f"{name}: removed {', '.join(removed) or 'nothing: no weights were installed'}"
    _say(as_json, {"adapter": name, "removed": removed, "unloaded_from": unloaded}, text)


@adapter.command()
@click.argument("name")
@click.argument("path", required=False, type=folder_type)
@click.option("--force", is_flag=True, help="Load a quarantined adapter all the same.")
@at_option
@as_json_option
@click.pass_context
def load(ctx: click.Context, name: str, path: str | None, force: bool, at: str, as_json: bool) -> None:
    """Load NAME into the servers that hold it: its installed weights, or those in PATH."""
    item = Registry(current_home(ctx)).find(name)
    if item.status == "quarantined" and not force:
        raise AdapterQuarantined(f"{name} is quarantined: {item.reason}; --force loads it all the same")
    source = Path(path).resolve() if path else item.path
    if source is None:
        raise AdapterNotFound(f"adapter {name}: {item.reason}; install it with `mlx-router adapter add {name} PATH`")
    body = {"lora_name": name, "lora_path": str(source), "load_inplace": True}
    servers = must_be_up(places(current_config(ctx), item, at), name)
    replies = [place.post("load", body) for place in servers]
    lines = [f"{reply['specialist']}: {reply['digest'][:19]} {reply['status']}" for reply in replies]
    _say(as_json, {"adapter": name, "servers": replies}, "\n".join(lines))


@adapter.command()
@click.argument("name")
@at_option
@as_json_option
@click.pass_context
def unload(ctx: click.Context, name: str, at: str, as_json: bool) -> None:
    """Unload NAME from the servers that hold it; its files stay."""
    item = Registry(current_home(ctx)).find(name)
    servers = must_be_up(places(current_config(ctx), item, at), name)
    replies = [place.post("unload", {"lora_name": name}) for place in servers]
    _say(as_json, {"adapter": name, "servers": replies}, "\n".join(f"{r['specialist']}: unloaded" for r in replies))


@adapter.command()
@click.argument("name")
@click.argument("path", type=folder_type)
@click.option("--force", is_flag=True, help="Swap in a quarantined version all the same.")
@at_option
@as_json_option
@click.pass_context
def swap(ctx: click.Context, name: str, path: str, force: bool, at: str, as_json: bool) -> None:
    """Replace the weights of NAME by those in PATH while requests run.

    Requests in flight end on the old version, later ones start on the new. A failed swap changes nothing.
    """
    from mlx_router.cli.adapter_swap import swap as swap_weights
    from mlx_router.cli.adapter_tables import swap_lines

    registry = Registry(current_home(ctx))
    servers = places(current_config(ctx), registry.find(name), at)
    servers = servers if at else up(servers)
    result = swap_weights(registry, name, Path(path), servers, force=force)
    _say(as_json, result, "\n".join(swap_lines(result)))


@adapter.command()
@click.argument("name")
@click.option("--off", is_flag=True, help="Let it be evicted again.")
@at_option
@as_json_option
@click.pass_context
def pin(ctx: click.Context, name: str, off: bool, at: str, as_json: bool) -> None:
    """Keep NAME resident: it is never evicted."""
    registry = Registry(current_home(ctx))
    item = registry.find(name)
    if item.status == "quarantined" and not off:
        raise AdapterQuarantined(f"{name} is quarantined: {item.reason}; `mlx-router adapter release {name}` ends that")
    servers = up(places(current_config(ctx), item, at))
    replies = [place.post("pin", {"lora_name": name, "pinned": not off}) for place in servers]
    registry.pin(name, not off)
    where = ", ".join(reply["specialist"] for reply in replies) or "no server runs; it holds from the next start"
    text = f"{name}: {'not pinned any more' if off else 'pinned'} ({where})"
    _say(as_json, {"adapter": name, "pinned": not off, "servers": replies}, text)


@adapter.command()
@click.argument("name")
@click.argument("reason")
@at_option
@as_json_option
@click.pass_context
def quarantine(ctx: click.Context, name: str, reason: str, at: str, as_json: bool) -> None:
    """Take the current weights of NAME out of traffic, and say why."""
    registry = Registry(current_home(ctx))
    item = registry.find(name)
    registry.quarantine(name, reason)
    unloaded = unload_everywhere(places(current_config(ctx), item, at), name)
    _say(as_json, {"adapter": name, "reason": reason, "unloaded_from": unloaded}, f"{name}: quarantined")


@adapter.command()
@click.argument("name")
@as_json_option
@click.pass_context
def release(ctx: click.Context, name: str, as_json: bool) -> None:
    """End the quarantine of the current weights of NAME."""
    registry = Registry(current_home(ctx))
    registry.release(name)
    item = registry.find(name)
    _say(as_json, _plain(item), f"{name}: {item.status}; `mlx-router adapter load {name}` brings it back to a server")


@contextmanager
def _manifest(
    registry: Registry, name: str, title: str | None, domains: tuple[str, ...], specialist: str
) -> Iterator[None]:
    """NAME has a manifest while its weights are installed; one made here is taken back if they are not."""
    from mlx_router.lora.manifest import Manifest, check_name, did_you_mean

    if name in registry.manifests():
        yield
        return
    check_name(name)
    if not title:
        hint = did_you_mean(name, registry.names())
        raise AdapterNotFound(f"no adapter {name!r}{hint}; a new one needs --title, and --domain for what it answers")
    registry.add_manifest(Manifest(name=name, title=title, domains=domains, specialist=specialist))
    try:
        yield
    except BaseException:
        registry.remove(name)
        raise


def _fetch(repository: str, revision: str) -> Path:
    import importlib

    hub: Any = importlib.import_module("huggingface_hub")
    patterns = ["adapters.safetensors", "adapter_model.safetensors", "adapter_config.json"]
    try:
        return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # whatever the hub client raises: no network, no such repository
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise AdapterError(f"{repository} cannot be fetched: {reason[0]}") from error


def _plain(item: AdapterRecord) -> dict[str, Any]:
    import dataclasses

    found = dataclasses.asdict(item)
    manifest = found.pop("manifest")
    keep = ("base", "source", "revision", "licence", "rank", "scale", "targets", "stands_in", "evaluation")
    found |= {key: manifest[key] for key in keep}
    found["path"] = str(item.path) if item.path else None
    return found


def _say(as_json: bool, value: Any, text: str) -> None:
    if as_json:
        echo_json(value)
    else:
        click.echo(text)


def _print(table: Any) -> None:
    from rich.console import Console

    Console(highlight=False).print(table)


adapter.add_command(train)
adapter.add_command(check)
