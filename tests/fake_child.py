"""A child for supervisor tests: /ready, /health and /metrics from a few files. `python -m tests.fake_child`.

In its folder, looked at on every request:
    unready      /ready says no; its text is the reason
    sick         /health says no; its text is the status word
    deaf         requests are not answered at all
    key          /metrics wants this API key
    hup          written when SIGHUP comes
It leaves on SIGTERM, unless --stubborn; when its parent is gone, with --parent-pid; at once, with --fail.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

gate = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    folder: Path
    requests = 0

    def do_GET(self) -> None:
        if (self.folder / "deaf").exists():
            gate.wait(30)
        if self.path == "/metrics":
            key = self.folder / "key"
            if key.exists() and self.headers.get("authorization") != f"Bearer {key.read_text()}":
                return self.answer(401, b"")
            type(self).requests += 5
            return self.answer(200, f'mlx_router_specialist_requests_total{{adapter="a"}} {self.requests}\n'.encode())
        no = self.folder / ("unready" if self.path == "/ready" else "sick")
        word = no.read_text() if no.exists() else ""
        if self.path == "/ready":
            part = {"ready": not no.exists(), "reason": word}
            body = {"ready": not no.exists(), "parts": {"engine": part}, "adapters": ["a"]}
            body["queue"] = {"waiting": 1, "running": 2, "limit": 8}
        else:
            body = {"status": word or "ok"}
        return self.answer(503 if no.exists() else 200, json.dumps(body).encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int)
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--fail", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder
    print(f"child {os.getpid()} on {arguments.port}", flush=True)
    if arguments.fail or (folder / "fail").exists():
        sys.exit("Error: this child cannot start")

    def leave(number: int, frame: FrameType | None) -> None:
        print("leaving", flush=True)
        os._exit(0)

    def hang_up(number: int, frame: FrameType | None) -> None:
        (folder / "hup").write_text("seen")

    signal.signal(signal.SIGHUP, hang_up)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if arguments.stubborn else leave)
    if arguments.parent_pid is not None:

        def watch() -> None:
            while os.getppid() == arguments.parent_pid:
                gate.wait(0.05)
            os._exit(0)

        threading.Thread(target=watch, daemon=True).start()
    Handler.folder = folder
    http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
