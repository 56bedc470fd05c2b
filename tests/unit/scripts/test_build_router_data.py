"""The splits as files: a corpus that cannot be read is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.gateway_rig import ROOT


def test_a_bad_corpus_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/build_router_data.py", "--data", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"Error: no <label>.jsonl files in {tmp_path}\n"
