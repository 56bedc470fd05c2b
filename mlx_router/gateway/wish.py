"""The user's wish: what of a conversation the router classifies. Pure functions on decoded messages.

The last user turn counts, without what an agent wraps around it. A turn that cannot stand alone ("continue",
"and in C?") leans on the wishes before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_router.gateway.boilerplate import strip
from mlx_router.gateway.followup import FollowUp, follow_up_kind

MAX_CHARS = 4000  # head and tail of a longer wish; the encoder's window is far smaller
_TAIL_CHARS = 1000
_MAX_TURNS_BACK = 6
_RAW_LIMIT_CHARS = 200_000  # of one turn, before anything is stripped


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asks for now."""

    text: str  # the last turn's own words
    context: str = ""  # the earlier wishes that it leans on
    follow_up: FollowUp = "none"

    @property
    def prompt(self) -> str:
        """The text to classify."""
        if self.follow_up == "none" or not self.context:
            return self.text
        return self.context if self.follow_up == "continuation" else clip(f"{self.context}\n{self.text}")


def wish_of(messages: Sequence[Any]) -> Wish:
    """The wish of a conversation; where nothing but boilerplate is there, the last user turn as it stands."""
    text, standalone, raw = "", "", ""
    kind: FollowUp = "none"
    later: list[str] = []  # elliptic turns between the last turn and what it leans on, latest first
    turns = 0
    for message in reversed(messages):
        if not isinstance(message, Mapping) or message.get("role") != "user":
            continue
        content = text_of(message.get("content"))[:_RAW_LIMIT_CHARS]
        raw = raw or content
        words = strip(content)
        turns += 1
        if words:
            found: FollowUp = follow_up_kind(words) if len(messages) > 1 else "none"
            if not text:
                text, kind = clip(words), found
                if found == "none":
                    return Wish(text)
            elif found == "none":
                standalone = words
                break
            elif found == "elliptic":
                later.append(words)
        if turns >= _MAX_TURNS_BACK:
            break
    context = "\n".join([standalone, *reversed(later)]).strip()
    if not context:
        return Wish(text or clip(raw.strip()))
    return Wish(text, clip(context), kind)


def conversation_keys(messages: Sequence[Any]) -> tuple[int | None, int | None]:
    """What a conversation was called after its last answer, and what it is called after the next one.

    Hashes of the system prompt and of every user turn that was answered, or will be: two conversations share one
    as long as their users said the same. The first is None before any answer, both are without a user.
    """
    system = ""
    turns: list[str] = []
    answered = 0
    for message in messages:
        if not isinstance(message, Mapping):
            continue
        role = message.get("role")
        if role == "user":
            turns.append(text_of(message.get("content")))
        elif role not in ("system", "developer"):
            answered = len(turns)
        elif not turns:
            system = text_of(message.get("content"))[:1000]
    if not turns:
        return None, None
    return hash((system, *turns[:answered])) if answered else None, hash((system, *turns))


def text_of(content: Any) -> str:
    """A message's content as text: a string, or the text parts of a list joined; nothing else counts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type") in ("text", "input_text"):
            text = part.get("text")
            texts.append(text if isinstance(text, str) else "")
    return "\n".join(texts)


def prompt_text(prompt: Any) -> str:
    """The wish of a plain completion: a string, or the first of a list of strings."""
    if isinstance(prompt, list):
        prompt = next((item for item in prompt if isinstance(item, str)), "")
    return clip(strip(prompt[:_RAW_LIMIT_CHARS])) if isinstance(prompt, str) else ""


def clip(text: str) -> str:
    """At most MAX_CHARS characters: the head and the tail."""
    if len(text) <= MAX_CHARS:
        return text
    return f"{text[: MAX_CHARS - _TAIL_CHARS - 1]}\n{text[-_TAIL_CHARS:]}"
