"""`mlx-router serve` as it is, around fake children: `python -m tests.serve_process FOLDER [options of mlx-router]`.

Each child has a folder of its own under FOLDER, which tests.fake_child looks at. `FOLDER/<name>/arguments` holds more
options for it. With `FOLDER/no-inotify` there, nothing can be watched.
"""

from __future__ import annotations

import dataclasses
import errno
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import watchfiles

from mlx_router.cli import main
from mlx_router.config import Config
from mlx_router.supervisor import spec, supervisor
from tests.gateway_rig import ROOT

CODE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.fake_child import main; main()"


def fake_specs(config: Config, parent_pid: int, ports: Mapping[str, int]) -> list[spec.ChildSpec]:
    """The children of a configuration, with other programs in them."""
    return [_fake(item, parent_pid) for item in real_specs(config, parent_pid, ports)]


def _fake(item: spec.ChildSpec, parent_pid: int) -> spec.ChildSpec:
    folder = FOLDER / item.name
    folder.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-S", "-c", CODE, "--port", str(item.port), "--folder", str(folder)]
    more = folder / "arguments"
    argv += more.read_text().split() if more.exists() else ["--parent-pid", str(parent_pid)]
    return dataclasses.replace(item, argv=tuple(argv))


def used_up(*folders: Path, **options: object) -> NoReturn:
    """What the system says when its inotify instances are."""
    raise OSError(errno.EMFILE, "Too many open files (os error 24)")


if __name__ == "__main__":
    FOLDER = Path(sys.argv.pop(1))
    real_specs = spec.child_specs
    if (FOLDER / "no-inotify").exists():
        watchfiles.awatch = used_up
    spec.child_specs = supervisor.child_specs = fake_specs
    main(prog_name="mlx-router")
