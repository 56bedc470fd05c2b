"""Chat rows that adapters are trained and checked on: JSON lines of {"messages": [{"role", "content"}, …]}.

The last message is the assistant's: the answer. A row of a regression set may have `expect`, a text that the answer
must contain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from mlx_router.errors import AdapterError

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ChatRow:
    """One exchange."""

    messages: tuple[dict[str, str], ...]
    expect: str = ""

    @property
    def question(self) -> tuple[str, ...]:
        """Everything before the answer."""
        return tuple(message["content"] for message in self.messages[:-1])

    @property
    def answer(self) -> str:
        """What the assistant says at the end."""
        return self.messages[-1]["content"]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids of a whole exchange; the answer begins at `offset`."""

    tokens: list[int]
    offset: int


def read_rows(path: Path) -> list[ChatRow]:
    """Every row of a file. Raises AdapterError with every bad line at once."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    rows: list[ChatRow] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line)))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise AdapterError.from_problems(f"{path} has rows that cannot be used", problems)
    if not rows:
        raise AdapterError(f"{path} has no rows")
    return rows


def _row(raw: Any) -> ChatRow:
    messages = raw.get("messages") if isinstance(raw, dict) else None
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError("no list of at least two `messages`")
    kept = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ROLES or not isinstance(content, str) or not content.strip():
            raise ValueError("a message without a known role or without text")
        kept.append({"role": role, "content": content})
    if kept[-1]["role"] != "assistant":
        raise ValueError("the last message is not the assistant's")
    expect = raw.get("expect", "")
    if not isinstance(expect, str):
        raise ValueError("`expect` is not a string")
    return ChatRow(tuple(kept), expect)


def encode_rows(rows: Sequence[ChatRow], tokenizer: Any, max_tokens: int) -> list[EncodedRow]:
    """Rows through the chat template, cut at `max_tokens`; a row whose answer does not begin before is an error."""
    encoded = []
    for row in rows:
        messages = [dict(message) for message in row.messages]
        tokens = list(tokenizer.apply_chat_template(messages, return_dict=False))[:max_tokens]
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        if len(prompt) >= len(tokens):
            start = str(row.messages[-2]["content"])[:40]
            raise AdapterError(
                f"the row {start!r} has {len(prompt)} tokens before its answer, the limit is {max_tokens}"
            )
        encoded.append(EncodedRow(tokens, len(prompt)))
    return encoded


def vary(text: str, random: Random) -> str:
    """The same question as another person would type it: words left out, no capitals, no punctuation."""
    words = text.split()
    if random.random() < 0.3:
        words = [word.lower() for word in words]
    if random.random() < 0.5:
        words = [bare for word in words if (bare := word.strip(".,;:?!«»"))]
    kept = [word for word in words if random.random() >= 0.2]
    return " ".join(kept if len(kept) >= 2 else words)


def varied(row: ChatRow, random: Random) -> ChatRow:
    """A row whose last question is varied; the answer stays."""
    *before, question, last = row.messages
    return ChatRow((*before, {**question, "content": vary(question["content"], random)}, last), row.expect)


def rows_digest(*files: Path) -> str:
    """sha256 of files' bytes, in order."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return f"sha256:{total.hexdigest()}"
