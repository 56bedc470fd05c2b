"""Headless Chromium over its DevTools protocol, through a pipe: no driver program, no port, no dependency."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
MISSING = "Chromium is not installed, and the page is tested in it: apt-get install chromium (or set CHROMIUM=/path)"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps",
    "--metrics-recording-only",
    "--mute-audio",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PATIENCE_S = 20.0
# The browser reads commands from descriptor 3 and writes answers to 4.
_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for number, end in zip((3, 4), ends):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class BrowserError(Exception):
    """The browser refused a command, or is gone."""


def find_chromium() -> str | None:
    """The path of an installed Chromium, or None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One browser process. `call` sends a command and waits for its answer."""

    def __init__(self, binary: str, profile: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        launcher = [sys.executable, "-c", _LAUNCH, str(to_browser), str(from_browser)]
        self._process = subprocess.Popen(
            [*launcher, binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(profile)},  # what it leaves behind goes with the profile
        )
        os.close(to_browser)
        os.close(from_browser)
        self._lock = threading.Condition()
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}
        self._gone = False
        self._reader = threading.Thread(target=self._read, name="devtools", daemon=True)
        self._reader.start()
        self.version: dict[str, Any] = self.call("Browser.getVersion")

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> Any:
        """One command. Raises BrowserError, TimeoutError."""
        with self._lock:
            if self._gone:
                raise BrowserError(f"Chromium is gone (exit status {self._process.poll()})")
            self._number += 1
            number = self._number
            message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
            if session is not None:
                message["sessionId"] = session
            data = json.dumps(message).encode() + b"\0"
            while data:
                data = data[os.write(self._out, data) :]
            if not self._lock.wait_for(lambda: number in self._answers or self._gone, PATIENCE_S):
                raise TimeoutError(f"Chromium does not answer {method}")
            answer = self._answers.pop(number, {"error": {"message": "Chromium ended"}})
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def listen(self, session: str, listener: Callable[[str, dict[str, Any]], None]) -> None:
        """Hand every event of a session to `listener(method, parameters)`, on the reader's thread."""
        with self._lock:
            self._listeners[session] = listener

    def close(self) -> None:
        """End the browser and its children."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE_S)
        os.close(self._out)
        self._reader.join(PATIENCE_S)
        os.close(self._in)

    def _read(self) -> None:
        rest = b""
        while piece := os.read(self._in, 2**16):
            *messages, rest = (rest + piece).split(b"\0")
            for raw in messages:
                message = json.loads(raw)
                with self._lock:
                    listener = self._listeners.get(message.get("sessionId", ""))
                    if "id" in message:
                        self._answers[message["id"]] = message
                        self._lock.notify_all()
                if listener is not None and "method" in message:
                    listener(message["method"], message["params"])
        with self._lock:
            self._gone = True
            self._lock.notify_all()
