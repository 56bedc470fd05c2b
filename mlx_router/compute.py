"""The one door to mlx: an optimised BLAS first, then `mx` and `nn`.

On Linux the mlx-cpu wheel calls whatever BLAS symbols the process already has; its own reference BLAS is 15 to 30
times slower. The library must therefore be loaded, with global symbols, before mlx is. On macOS mlx has Accelerate
and Metal, and nothing is loaded.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import shutil
import sys
import sysconfig
from pathlib import Path

log = logging.getLogger(__name__)

INSTALL_HINT = "apt-get install libopenblas0-pthread, or pip install mkl"


def _candidates() -> list[str]:
    found = ["libopenblas.so.0"]
    scheme = sysconfig.get_paths()["data"]
    found += [str(path) for path in sorted(Path(scheme, "lib").glob("libmkl_rt.so*"))]
    return found


def preload_blas() -> str | None:
    """Load OpenBLAS, else MKL, with global symbols: the name of the library loaded, None where there is none."""
    if sys.platform != "linux":
        return None
    for name in _candidates():
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return name
    log.warning("no optimised BLAS found: mlx on this CPU is 15-30 times slower; install one: %s", INSTALL_HINT)
    return None


def can_compile() -> bool:
    """Whether `mx.compile` works: on a CPU it calls g++ at run time."""
    return sys.platform != "linux" or shutil.which("g++") is not None


LATE = "mlx.core" in sys.modules  # somebody imported mlx without this door: its BLAS is bound already
BLAS = None if LATE else preload_blas()

import mlx.core as mx  # noqa: E402  the BLAS must be there first
import mlx.nn as nn  # noqa: E402
import mlx.optimizers as optim  # noqa: E402

if not can_compile():
    mx.disable_compile()

__all__ = ["BLAS", "INSTALL_HINT", "LATE", "can_compile", "mx", "nn", "optim", "preload_blas"]
