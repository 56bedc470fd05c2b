"""A router for gateway tests: words instead of weights, the real versions on disk."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_router.artifacts.store import REQUIRED, RouterStore
from mlx_router.head.decision import Decision, Thresholds, decide

WORDS = {"kicad": "kicad-pcb", "spice": "spice", "sql": "sql", "python": "python", "rust": "rust", "bonjour": "chat-fr"}
LABELS = (*sorted(set(WORDS.values())), "general")
THRESHOLDS = Thresholds(per_label=dict.fromkeys(LABELS, 0.5), out_of_domain=0.2)


class FakeRouter:
    """A word of a prompt is worth 0.9 for its domain; the last word wins; "perhaps" leaves everything at 0.3.

    A text "until PATH" is encoded when PATH is there.
    """

    def __init__(self, home: Path) -> None:
        self.version, self.notice = RouterStore(home).serving()
        self.labels = LABELS
        self.meta: dict[str, Any] = {"metrics": {"macro_f1": 0.9}}

    def route_many(self, prompts: Sequence[str], *, top: int = 5) -> list[Decision]:
        return [self._decide(prompt, top) for prompt in prompts]

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        rows = []
        for text in texts:
            while text.startswith("until ") and not Path(text.removeprefix("until ")).exists():
                time.sleep(0.01)
            seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:4], "big")
            row = np.random.default_rng(seed).standard_normal(384).astype(np.float32)
            rows.append(row / np.linalg.norm(row))
        return np.stack(rows)

    def _decide(self, prompt: str, top: int) -> Decision:
        scores = dict.fromkeys(LABELS, 0.05)
        if "boom" in prompt:
            raise RuntimeError("boom")
        found = [word.strip("?.!,:") for word in prompt.lower().split()]
        for position, word in enumerate(found):
            if word in WORDS:
                scores[WORDS[word]] = 0.8 + 0.15 * (position + 1) / len(found)
            if word == "perhaps":
                scores["sql"] = 0.3
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        return decide(ranked, THRESHOLDS, top=top, router=self.version, encode_ms=1.0)


def publish_version(home: Path, *, activate: bool = True) -> str:
    """A new version of placeholder files."""
    store = RouterStore(home)
    with store.draft() as draft:
        for name in REQUIRED:
            (draft / name).write_text(json.dumps({"file": name}), encoding="utf-8")
        version = store.publish(draft)
    if activate:
        store.activate(version)
    return version
