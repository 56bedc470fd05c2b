"""`python -m mlx_router` is `mlx-router`."""

from mlx_router.cli import main

main(prog_name="mlx-router")
