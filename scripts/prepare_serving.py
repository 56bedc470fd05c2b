"""What `mlx-router serve` needs and may not find: a router version, and the demo where a base is `demo`."""

from __future__ import annotations

import subprocess
import sys

from mlx_router.artifacts.store import RouterStore
from mlx_router.cli.bars import TaskBars
from mlx_router.config import load_config
from mlx_router.errors import RouterError
from mlx_router.lora.demo import BASE_NAME, ensure_demo


def main() -> int:
    """Train a router if there is none; prepare the demo's base and adapters if they are served."""
    try:
        config = load_config()
        if RouterStore(config.home).current() is None:
            print(f"no router version in {config.home}: training one", flush=True)
            command = [sys.executable, "-m", "mlx_router", "--home", str(config.home), "router", "train"]
            if status := subprocess.run(command, check=False).returncode:
                return status
        if any(item.base == BASE_NAME for item in config.specialists):
            with TaskBars() as bars:
                ensure_demo(config.home, bars.draw)
    except RouterError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
