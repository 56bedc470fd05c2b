"""One OpenAI endpoint that sends each prompt to the right LoRA specialist."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_router.head.decision import Decision
    from mlx_router.head.router import Router

__version__ = "0.1.0"
__all__ = ["Decision", "Router", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the Python API on first use, so that `mlx-router --help` starts without numpy or mlx."""
    if name == "Router":
        from mlx_router.head.router import Router

        return Router
    if name == "Decision":
        from mlx_router.head.decision import Decision

        return Decision
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
