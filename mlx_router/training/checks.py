"""What `corpus check` refuses: everything that once made a corpus teach the wrong thing."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlx_router.head.lexical import fold
from mlx_router.training.corpus import Row
from mlx_router.training.language import guess_language
from mlx_router.training.similarity import near_duplicates

SKELETON = 4  # words
SKELETON_SHARED_WITH = 5  # other rows of the label
TEMPLATE_SHARE = 0.08  # of a label's rows that may share a skeleton with five others
_PERSONAL = {
    "a mail address": re.compile(
        r"[\w.+-]+@(?!example\.|test\.|localhost)[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b", re.IGNORECASE
    ),
    "a phone number": re.compile(
        r"(?<![\w.])(?:\+33|0033|0)[ .-]?[1-9](?:[ .-]?\d{2}){4}(?![\w.])|\(\d{3}\) \d{3}-\d{4}"
    ),
    "a secret key": re.compile(r"\b(?:sk|pk|ghp|xox[bp]|AKIA)[-_]?[A-Za-z0-9]{20,}\b|-----BEGIN [A-Z ]*PRIVATE KEY"),
}


def check_rows(
    rows: Sequence[Row], embeddings: npt.NDArray[np.float32] | None = None, apart: Sequence[Row] = ()
) -> list[str]:
    """Every problem of a corpus that parsed, one line each, with file and line.

    Args:
        embeddings: of `rows` and then of `apart`, (n, D); without them only characters are compared.
        apart: prompts that the router is measured on, which no row may resemble.
    """
    return [
        *_duplicates(rows, apart),
        *_near_duplicates(rows, embeddings, apart),
        *_personal(rows),
        *_languages(rows),
        *_templates(rows),
    ]


def _duplicates(rows: Sequence[Row], apart: Sequence[Row]) -> list[str]:
    first = {fold(row.text) or row.text: row.where for row in apart}
    problems = []
    for row in rows:
        key = fold(row.text) or row.text
        if key in first:
            problems.append(f"{row.where}: the same text as {first[key]}")
        first.setdefault(key, row.where)
    return problems


def _near_duplicates(
    rows: Sequence[Row], embeddings: npt.NDArray[np.float32] | None, apart: Sequence[Row]
) -> list[str]:
    if embeddings is None:
        return []
    every = [*rows, *apart]
    problems: list[str] = []
    for i, j, cosine, kind in near_duplicates([row.text for row in every], embeddings):
        if i >= len(rows):
            continue  # two of the prompts kept apart
        # The later row is the one to go; of a pair with a prompt kept apart, the row.
        row, other = (every[j], every[i]) if j < len(rows) else (every[i], every[j])
        across = "" if row.label == other.label else f" (label {other.label})"
        problems.append(f"{row.where}: near-duplicate of {other.where}{across}, {kind} {cosine:.2f}")
    return problems


def _personal(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row.where}: looks like {what}: {match.group()[:12]}…"
        for row in rows
        for what, pattern in _PERSONAL.items()
        if (match := pattern.search(row.text))
    ]


def _languages(rows: Sequence[Row]) -> list[str]:
    problems = []
    for row in rows:
        guess = guess_language(row.text)
        if guess is not None and row.lang not in (guess, "mixed", "other"):
            problems.append(f'{row.where}: tagged "{row.lang}", reads as "{guess}"')
    return problems


def _templates(rows: Sequence[Row]) -> list[str]:
    """Share of each label's rows with a run of four words that stands in at least five other rows of the label."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
    problems = []
    for label, members in by_label.items():
        share, example = template_share([row.text for row in members])
        if share > TEMPLATE_SHARE:
            problems.append(
                f"{label}: {share:.0%} of the rows share four words in a row with {SKELETON_SHARED_WITH} others, "
                f"at most {TEMPLATE_SHARE:.0%}; most often {example!r}"
            )
    return problems


def template_share(texts: Sequence[str]) -> tuple[float, str]:
    """Share of texts that share a skeleton with five others, and the most frequent skeleton."""
    skeletons = []
    for text in texts:
        words = fold(text).split()
        skeletons.append({" ".join(words[i : i + SKELETON]) for i in range(len(words) - SKELETON + 1)})
    counts = Counter(skeleton for found in skeletons for skeleton in found)
    frequent = {skeleton for skeleton, count in counts.items() if count > SKELETON_SHARED_WITH}
    share = sum(bool(found & frequent) for found in skeletons) / max(len(texts), 1)
    return share, max(frequent, key=lambda skeleton: counts[skeleton], default="")
