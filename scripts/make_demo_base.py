"""Prepare the embedded demo: its base and twelve adapters, once; a later call takes a moment."""

from __future__ import annotations

import argparse
import sys
import time

from mlx_router.cli.bars import TaskBars
from mlx_router.config import home_dir
from mlx_router.errors import RouterError
from mlx_router.lora.demo import ensure_demo


def main() -> int:
    """Say where everything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", metavar="DIR", help="default: $MLX_ROUTER_HOME or ~/.mlx-router")
    parser.add_argument("--no-install", action="store_true", help="prepare only, install nothing")
    options = parser.parse_args()
    began = time.monotonic()
    try:
        with TaskBars() as bars:
            paths = ensure_demo(home_dir(options.home), bars.draw, install=not options.no_install)
    except RouterError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return 1
    print(f"base: {paths.base}")
    for name, path in paths.adapters.items():
        print(f"{name}: {path}")
    print(f"ready in {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
