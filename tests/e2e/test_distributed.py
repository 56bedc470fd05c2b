"""Two processes on loopback under `mlx.launch`, with the ring backend."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlx_router.encoder.encoder import load_encoder
from mlx_router.encoder.weights import find_encoder
from mlx_router.training.stream import read_shards
from tests.gateway_rig import ROOT, free_port

LAUNCH = Path(sys.executable).with_name("mlx.launch")


def two_ports() -> int:
    """The first of two neighbouring free ports."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@pytest.mark.skipif(not LAUNCH.exists(), reason="mlx.launch is not installed")
def test_two_processes_write_what_one_computes(tmp_path: Path) -> None:
    lines = (ROOT / "data" / "router" / "stm32.jsonl").read_text(encoding="utf-8").splitlines()[:70]
    source = tmp_path / "texts.jsonl"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [str(LAUNCH), "-n", "2", "--backend", "ring", "-p", str(two_ports()), "--python", sys.executable, "--"]
    command += [str(LAUNCH.with_name("mlx-router")), "--home", str(tmp_path / "home"), "router", "embed"]
    done = subprocess.run(
        [*command, str(source), str(tmp_path / "out"), "--runtime", "mlx", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1])["rows"] == 70
    alone = load_encoder(find_encoder(), runtime="mlx").encode([json.loads(line)["text"] for line in lines])
    assert np.concatenate(list(read_shards(tmp_path / "out"))).tobytes() == alone.tobytes()
