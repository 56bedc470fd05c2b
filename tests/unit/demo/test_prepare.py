"""What the demo prepares before it serves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.gateway_rig import ROOT


def test_training_leaves_stdout_to_the_demo(tmp_path: Path) -> None:
    trainer = tmp_path / "python"
    trainer.write_text("#!/bin/sh\necho a table of figures\n")
    trainer.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from mlx_router.demo.prepare import ensure_router\n"
        f"sys.executable = {str(trainer)!r}; home = Path({str(tmp_path / 'home')!r})\n"
        "ensure_router(home, home / 'demo.toml')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "a table of figures" in done.stderr
