"""LiteLLM's proxy, the peer: it lives in an environment of its own and is reached by its command."""

from __future__ import annotations

import subprocess
from pathlib import Path


def command(litellm: str, folder: Path, port: int, upstream: int) -> list[str]:
    """What starts it on `port`, with the upstream as its one model."""
    path = folder / "litellm.yaml"
    path.write_text(
        "model_list:\n  - model_name: base\n    litellm_params:\n      model: openai/base\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\n      api_key: none\n"
        "general_settings:\n  dangerously_permit_weak_or_unset_master_key: true\n",  # no keys on either side
        encoding="utf-8",
    )
    return [litellm, "--config", str(path), "--port", str(port), "--host", "127.0.0.1"]


def version(litellm: str) -> str:
    """What it says of itself."""
    said = subprocess.run([litellm, "--version"], capture_output=True, text=True, timeout=120).stdout.split()
    return said[-1] if said else "unknown"
