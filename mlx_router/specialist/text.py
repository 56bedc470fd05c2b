"""Tokens to text, one at a time: whole UTF-8 characters only, special tokens left out, stop strings cut.

Byte-level vocabularies (GPT-2, Llama 3, Qwen, …) are decoded here from a table of each token's bytes; for
others mlx-lm's streaming detokenizer does it. A character is emitted when its last byte has come; bytes that
an answer leaves unfinished at its end are dropped.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol


class Detokenizer(Protocol):
    """One stream's state."""

    def add(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""

    def finish(self) -> str:
        """Text that was held back, at the end of the stream."""


def byte_alphabet() -> dict[str, int]:
    """GPT-2's stand-ins for bytes: 188 printable Latin-1 characters are themselves, the rest follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(rest)}


class Vocabulary:
    """Every token's bytes, and a fresh detokenizer for each stream.

    `backend` is the Rust tokenizer (its JSON tells decoder and added tokens), `fallback` makes mlx-lm's
    streaming detokenizer, `keep` are special tokens whose text matters (markers of reasoning and tool calls).
    """

    def __init__(self, backend: Any, *, fallback: Callable[[], Any], keep: Collection[str] = ()) -> None:
        description = json.loads(backend.to_str())
        added = {item["id"]: item for item in description.get("added_tokens") or []}
        self.size: int = backend.get_vocab_size(with_added_tokens=True)
        self.byte_level: bool = _is_byte_level(description.get("decoder"))
        self._fallback = fallback
        self.hidden = frozenset(
            token for token, item in added.items() if item.get("special") and item["content"] not in keep
        )
        alphabet = byte_alphabet()
        self._bytes: list[bytes] = []
        for token in range(self.size):
            content = added[token]["content"] if token in added else backend.id_to_token(token)
            if content is None:
                self._bytes.append(b"")
            elif token in added or not self.byte_level:
                self._bytes.append(content.encode())
            else:
                self._bytes.append(bytes(alphabet[char] for char in content if char in alphabet))

    def raw(self, token: int) -> bytes:
        """The token's own bytes; empty for ids that a padded embedding has beyond the vocabulary."""
        return self._bytes[token] if 0 <= token < self.size else b""

    def shown(self, token: int) -> str:
        """The token as a log-probability entry names it; half characters are marked with U+FFFD."""
        return self.raw(token).decode("utf-8", "replace")

    def detokenizer(self) -> Detokenizer:
        """A detokenizer at the start of a stream."""
        if self.byte_level:
            return ByteDetokenizer(self._bytes, self.hidden)
        return WrappedDetokenizer(self._fallback(), self.hidden)


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "ByteLevel":
        return True
    return decoder.get("type") == "Sequence" and any(_is_byte_level(part) for part in decoder["decoders"])


class ByteDetokenizer:
    """Byte-level tokens through an incremental UTF-8 decoder; broken bytes become U+FFFD."""

    def __init__(self, table: Sequence[bytes], hidden: Collection[int]) -> None:
        self._table = table
        self._hidden = hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        if token in self._hidden or not 0 <= token < len(self._table):
            return ""
        return self._decoder.decode(self._table[token])

    def finish(self) -> str:
        self._decoder.reset()  # an unfinished character is dropped
        return ""


class WrappedDetokenizer:
    """mlx-lm's detokenizer, with the same promises."""

    def __init__(self, inner: Any, hidden: Collection[int]) -> None:
        self._inner = inner
        self._hidden = hidden

    def add(self, token: int) -> str:
        if token in self._hidden:
            return ""
        self._inner.add_token(token)
        return _clean(self._inner.last_segment)

    def finish(self) -> str:
        self._inner.finalize()
        return _clean(self._inner.last_segment).rstrip("\ufffd")


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8", "replace")


class StopStrings:
    """Cut a stream of text before the first stop string, wherever token boundaries fall.

    Text that could be the beginning of a stop string is held back until the next characters decide.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """The part of the stream that is now certain."""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Text that was held back, where no stop string came."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
