"""A home that can be served in seconds: a router of two domains, and adapters of a base whose every letter is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mlx_router.lora.registry import Registry
from tests.gateway_rig import ROOT
from tests.tiny_chat import save_revealing, save_version

DOMAINS = ("kicad-pcb", "sql")
ADAPTERS = {"mascarade-kicad": 0, "mascarade-sql": 1}  # their versions answer in A and in B


def make_home(folder: Path) -> Path:
    """`folder` with home/, base/, and one folder an adapter."""
    save_revealing(folder / "base")
    corpus = folder / "corpus"
    corpus.mkdir()
    for domain in DOMAINS:
        lines = (ROOT / "data" / "router" / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()[:60]
        (corpus / f"{domain}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    home = folder / "home"
    command = [sys.executable, "-m", "mlx_router", "--home", str(home), "router", "train"]
    subprocess.run([*command, "--data", str(corpus), "--epochs", "8"], check=True, cwd=folder, capture_output=True)
    for name, version in ADAPTERS.items():
        Registry(home).install(name, save_version(folder / name, version))
    return folder
