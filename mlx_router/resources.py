"""Files that travel with the package: the corpus, the adapter manifests, and the texts of the embedded demo.

A wheel carries them under `mlx_router/_data`; a checkout has them at its root.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def corpus_dir() -> Path:
    """The folder of `<label>.jsonl` files that `router train` reads by default."""
    packaged = _PACKAGE / "_data" / "router"
    return packaged if packaged.is_dir() else _CHECKOUT / "data" / "router"


def adapters_dir() -> Path:
    """The folder of `<name>/adapter.toml` manifests."""
    packaged = _PACKAGE / "_data" / "adapters"
    return packaged if packaged.is_dir() else _CHECKOUT / "adapters"


def specialists_dir() -> Path:
    """The folder of `<adapter>/{train,valid}.jsonl` files that `adapter train` and `adapter check` read by default."""
    packaged = _PACKAGE / "_data" / "specialists"
    return packaged if packaged.is_dir() else _CHECKOUT / "data" / "specialists"


def demo_dir() -> Path:
    """The folder of texts that the embedded base is trained on."""
    packaged = _PACKAGE / "_data" / "demo"
    return packaged if packaged.is_dir() else _CHECKOUT / "data" / "demo"
