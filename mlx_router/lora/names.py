"""Module paths: what transformers' and mlx-lm's have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LAYER = re.compile(r"^(?:.*?\.)?layers\.(\d+)\.(.+)$")


def layer_index(path: str) -> int | None:
    """The number of the layer that a module belongs to, if any."""
    found = _LAYER.match(path)
    return int(found[1]) if found else None


def in_layer(path: str) -> str:
    """A module's path within its layer, as mlx-lm's `keys` name it; outside layers the whole path."""
    found = _LAYER.match(path)
    return found[2] if found else path


def tail(path: str) -> str:
    """The part of a module path that transformers and mlx-lm agree on: from `layers.`, or the last name."""
    found = _LAYER.match(path)
    return f"layers.{found[1]}.{found[2]}" if found else path.rpartition(".")[2]


def by_tail(paths: Iterable[str]) -> dict[str, str]:
    """Paths by their tails, without tails that several paths share."""
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(tail(path), []).append(path)
    return {key: same[0] for key, same in found.items() if len(same) == 1}
