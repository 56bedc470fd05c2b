"""Which conversation is with which domain and endpoint. Bounded, least recently used out first.

A key is a name that the client gives (bytes: a conversation, str: what its prompt begins with), a hash of the turns so
far (int), or None, of which nothing is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(slots=True)
class Thread:
    """Where a conversation is."""

    domain: str
    endpoint: str  # key of the endpoint that answered last; its prompt cache is there


class Conversations:
    """An LRU from conversation key to thread; used from the event loop only."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._threads: OrderedDict[object, Thread] = OrderedDict()

    def __len__(self) -> int:
        return len(self._threads)

    def get(self, key: object) -> Thread | None:
        """The thread of a conversation, if it is still remembered."""
        return self._threads.get(key)

    def put(self, key: object, thread: Thread) -> None:
        """Remember where a conversation is now."""
        if key is None:
            return
        self._threads[key] = thread
        self._threads.move_to_end(key)
        if len(self._threads) > self._capacity:
            self._threads.popitem(last=False)
