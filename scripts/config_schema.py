"""Write mlx-router.schema.json from the configuration's dataclasses; with --check, only say whether it is current."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mlx_router.config.editor import json_schema

TARGET = Path(__file__).resolve().parent.parent / "mlx-router.schema.json"


def main() -> int:
    """Exit status 1 where --check finds a difference."""
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    current = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
    if "--check" in sys.argv[1:]:
        print(f"{TARGET.name} is {'current' if current else 'not current: run python scripts/config_schema.py'}")
        return 0 if current else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
