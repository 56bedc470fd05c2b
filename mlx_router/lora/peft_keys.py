"""The keys of PEFT's rank_pattern and alpha_pattern, each for the modules whose name ends as it says.

To PEFT a key is any regular expression, and one in a file that anybody may have made can take years to match.
What people write is read here, with PEFT's meaning: names, `.` (any character), `\\.` (a dot), `.*` (any text), `[0-9]`
(one of these), `^` (the whole name, not its end) and `$`. These match like the wildcards of file names, in at most as
many steps as a key and a name have characters, multiplied. Everything else is refused.
"""

from __future__ import annotations

import re
from fnmatch import translate

MAX_STEPS = 2 * 10**9  # 4 s at the worst; 500 modules with a key each need a third of it
MAX_KEY = 1000  # characters; longer ones take long to compile

KEY = re.compile(r"(?P<whole>\^?)(?P<text>(?:[\w-]|\\\.|\.\*?|\[(?:\w-\w|\w)+\])*+)\$?")
WILDCARDS = {".*": "*", ".": "?", r"\.": "."}


class Key:
    """One key, ready to be matched."""

    def __init__(self, text: str) -> None:
        """Raises ValueError where `text` is a regular expression that is not read."""
        found = KEY.fullmatch(text) if len(text) <= MAX_KEY else None
        if found is None:
            raise ValueError(
                f"only names, `.`, `.*`, `[0-9]`, `^` and `$` are read in a key, {MAX_KEY} characters of it"
            )
        glob = re.sub(r"\\?\.\*?", lambda part: WILDCARDS[part[0]], found["text"])
        globs = [glob] if found["whole"] else [glob, f"*.{glob}"]
        self._patterns = [re.compile(translate(each)) for each in globs]

    def matches(self, module: str) -> bool:
        return any(pattern.match(module) for pattern in self._patterns)
