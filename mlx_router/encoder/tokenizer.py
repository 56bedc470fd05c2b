"""WordPiece with MiniLM's window: texts -> token ids, head and tail kept where a text is longer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

WINDOW = 256  # tokens, [CLS] and [SEP] included; sentence_bert_config.json, max_seq_length
_HEAD_CHARS = _TAIL_CHARS = 8192  # of a huge text: far more than the window can hold

Ids = npt.NDArray[np.int32]


class Tokenizer:
    """The published tokenizer.json without its padding to 128 and its cut at 128."""

    def __init__(self, path: Path, window: int = WINDOW) -> None:
        self.window = window
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, (T,) int32 with 2 <= T <= window.

        An empty or blank text is [CLS] [SEP]. Lone surrogates (undecodable bytes of an argument or a file) become
        "?". A text beyond the window keeps its first and last tokens in equal parts.
        """
        encodings = self._tokenizer.encode_batch_fast([_clean(text) for text in texts])
        return [self._fit(np.asarray(encoding.ids, dtype=np.int32)) for encoding in encodings]

    def _fit(self, ids: Ids) -> Ids:
        if len(ids) <= self.window:
            return ids
        head = self.window // 2
        return np.concatenate([ids[:head], ids[len(ids) - (self.window - head) :]])


def _clean(text: str) -> str:
    if len(text) > _HEAD_CHARS + _TAIL_CHARS:
        text = f"{text[:_HEAD_CHARS]} {text[-_TAIL_CHARS:]}"
    return text.encode("utf-8", "replace").decode("utf-8")
