"""The gateway as it is, around a fake router and a fixed catalogue: `python -m tests.gateway_process`."""

from __future__ import annotations

import argparse
import logging
import sys

from mlx_router.config import load_config
from mlx_router.errors import RouterError
from mlx_router.gateway.routes import AdapterEntry
from mlx_router.gateway.server import serve
from mlx_router.gateway.service import Gateway
from tests.fake_router import FakeRouter

CATALOG = [
    AdapterEntry(name="mascarade-kicad", domains=("kicad", "kicad-dsl", "kicad-pcb"), specialist="hardware"),
    AdapterEntry(name="mascarade-spice", domains=("spice",), specialist="hardware"),
    AdapterEntry(name="mascarade-sql", domains=("sql",), specialist="code"),
    AdapterEntry(name="mascarade-coder", domains=("python",), specialist="code"),
    AdapterEntry(name="mascarade-rust", domains=("rust",), specialist="code"),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--home", required=True)
    parser.add_argument("--parent-pid", type=int)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    try:
        config = load_config(arguments.config, arguments.home)
        gateway = Gateway(config, load=lambda config: FakeRouter(config.home), catalog=lambda config: CATALOG)
        serve(gateway, parent_pid=arguments.parent_pid)
    except RouterError as error:
        sys.exit(f"Error: {error.message}")


if __name__ == "__main__":
    main()
