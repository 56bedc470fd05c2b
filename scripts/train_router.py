"""`mlx-router router train`, under the name that the provenance record gives it."""

from __future__ import annotations

import sys

from mlx_router.cli import main

if __name__ == "__main__":
    main(["router", "train", *sys.argv[1:]], prog_name="train_router.py")
