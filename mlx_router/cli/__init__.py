"""The command line: noun, then verb. Commands are imported when they are called, so that help answers at once."""

from __future__ import annotations

import errno
import importlib
import logging
import sys
from typing import Any

import click

from mlx_router import __version__
from mlx_router.errors import RouterError

log = logging.getLogger(__name__)

_OTHER_HOME = ", or give another --home"
_ROOM = f"; free some space{_OTHER_HOME}"
_RIGHTS = f"; look at who owns it and may write there{_OTHER_HOME}"
NEXT_STEPS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.EMFILE: "; raise the limit of open files (`ulimit -n`)",
}

# name -> (module:attribute, one line of help, hidden)
COMMANDS: dict[str, tuple[str, str, bool]] = {
    "route": ("mlx_router.cli.route:route", "Say where prompts go.", False),
    "router": (
        "mlx_router.cli.router:router",
        "Train, inspect, activate and roll back router versions.",
        False,
    ),
    "corpus": ("mlx_router.cli.corpus:corpus", "Check and describe the training corpus.", False),
    "serve": ("mlx_router.cli.serve:serve", "Run gateway and specialists, and keep them alive.", False),
    "status": ("mlx_router.cli.status:status", "Show what runs: processes, ports, adapters, traffic.", False),
    "stop": ("mlx_router.cli.serve:stop", "Stop a running `serve` after its requests have ended.", False),
    "logs": ("mlx_router.cli.logs:logs", "Print or follow the log of a process.", False),
    "service": (
        "mlx_router.cli.service:service",
        "Start at boot: launchd on macOS, systemd on Linux.",
        False,
    ),
    "adapter": ("mlx_router.cli.adapter:adapter", "List, load, swap, check and train adapters.", False),
    "demo": ("mlx_router.cli.demo:demo", "Run the whole system once on the embedded default.", False),
    "gateway": ("mlx_router.cli.gateway:command", "Run the gateway alone (a child of serve).", True),
    "specialist": ("mlx_router.cli.specialist:command", "Run one specialist alone (a child of serve).", True),
}


class LazyGroup(click.Group):
    """Imports a command's module on its first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, (_, _, hidden) in COMMANDS.items() if not hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """click's own hint needs commands that are imported."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            from mlx_router.config.parse import suggest

            ctx.fail(f"no command {name!r}{suggest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table above is the help, so that nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text, hidden) in COMMANDS.items() if not hidden])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RouterError as error:
            raise click.ClickException(error.message) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # nobody reads on: click leaves quietly
                raise
            log.debug("event=refused_by_the_system", exc_info=True)
            raise click.ClickException(_refusal(error)) from error


def _refusal(error: OSError) -> str:
    """One line: what the system refused, where, and what may be done about it."""
    what = error.strerror or str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{what}{NEXT_STEPS.get(error.errno or 0, '')}"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "config_path", metavar="FILE", help="Default: mlx-router.toml here, else in the home.")
@click.option("--home", metavar="DIR", help="Versions, adapters, logs (default: $MLX_ROUTER_HOME or ~/.mlx-router).")
@click.option("-v", "--verbose", count=True, help="Log more; twice for everything.")
@click.version_option(__version__, prog_name="mlx-router")
@click.pass_context
def main(ctx: click.Context, config_path: str | None, home: str | None, verbose: int) -> None:
    """Send each prompt to the right LoRA specialist, on this machine.

    \b
    First steps:
      mlx-router router train      train the router that everything else uses
      mlx-router route "prompt"    see where a prompt goes
      mlx-router serve             one OpenAI endpoint on http://127.0.0.1:9300/v1
    """
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    ctx.obj = {"config": config_path, "home": home}
