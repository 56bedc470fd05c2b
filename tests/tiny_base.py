"""A base that is trained for a moment on a few sentences: a real tokenizer, a chat template, and answers it knows."""

from __future__ import annotations

import json
from pathlib import Path

from mlx_router.lora.demo_base import BaseRecipe, BaseTexts, train_base
from mlx_router.lora.rows import ChatRow

FACTS = {
    "What is the capital of France?": "Paris it is.",
    "What is two and two?": "Four it is.",
    "What colour is the sky?": "Blue it is.",
    "Who are you?": "A small model.",
}
RECIPE = BaseRecipe(
    vocabulary=320,
    layers=2,
    hidden=64,
    middle=128,
    heads=2,
    kv_heads=1,
    head_dim=32,
    steps=40,
    batch_tokens=256,
    vector_rate=0.02,
    seed=3,
)


def rows(pairs: dict[str, str]) -> list[ChatRow]:
    """One question and one answer a row."""
    return [
        ChatRow(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))
        for question, answer in pairs.items()
    ]


def write_rows(path: Path, pairs: dict[str, str], *, expect: bool = False) -> Path:
    """The same as a file; with `expect`, the answer's first word is what a check looks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows(pairs):
        entry: dict[str, object] = {"messages": list(row.messages)}
        if expect:
            entry["expect"] = row.answer.split()[0]
        lines.append(json.dumps(entry))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def save_tiny_base(path: Path, recipe: BaseRecipe = RECIPE) -> Path:
    """Train and write it: a second or two."""
    train_base(BaseTexts(chats=rows(FACTS) * 2, texts=["The sky is blue."]), path, recipe, lambda *_: None)
    return path
