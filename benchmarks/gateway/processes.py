"""Child processes that are there before they are measured."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def process(
    arguments: list[str], url: str, patience_s: float = 60.0, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that answers at `url` before the body runs."""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(arguments, cwd=ROOT, stdout=output, stderr=output, env={**os.environ, **environment})
        try:
            end = time.monotonic() + patience_s
            while not _answers(url):
                if child.poll() is not None or time.monotonic() > end:
                    output.seek(0)
                    raise SystemExit(f"{arguments[1:4]} did not start:\n{output.read()[-3000:].decode()}")
                time.sleep(0.05)
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
