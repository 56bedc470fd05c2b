"""Whether a turn stands alone, adds to what came before, or only asks for more of it. Pure."""

from __future__ import annotations

import re
from typing import Literal

FollowUp = Literal["none", "continuation", "elliptic"]

_MAX_CHARS = 80
_EDGES = " \t\r\n.!?…;:,\"'*_()"

# Words that may stand around either kind without saying anything.
_COURTESIES = frozenset(
    """
    ok okay yes yep yeah sure no nope oui non si ja please svp stp bitte merci thanks thank you great super
    parfait perfect cool alors so well now maintenant bien good nice top just can could would tu vous peux
    pouvez
    """.split()  # noqa: SIM905
)

# Whole turns that say nothing on their own.
_CONTINUATIONS = frozenset(
    phrase.strip()
    for phrase in """
    continue|continuez|continuer|continuons|go on|go ahead|keep going|carry on|proceed|resume|more|again
    next|next step|next one|another|another one|encore|encore un|encore une|un autre|une autre|suite
    la suite|poursuis|poursuivez|vas-y|vas y|allez-y|fais-le|do it|do that|try again|retry|réessaie
    réessaye|réessayez|recommence|explain|explain it|explain that|explain more|explain this|explique
    explique ça|explique moi|explique-moi|why|why not|pourquoi|pourquoi pas|comment ça|how so|and then
    then|et ensuite|et après|et puis|ensuite|what else|anything else|quoi d'autre|autre chose|c'est tout
    is that all|are you sure|tu es sûr|fix it|fix that|corrige|corrige ça|corrige-le|shorter|longer
    plus court|plus long|simpler|plus simple|in more detail|more detail|more details|plus de détails
    en détail|détaille|en français|in french|en anglais|in english|auf deutsch|in german|en allemand
    in italiano|en español|weiter|mach weiter|continua|sigue|avanti|and|et|d'accord|très bien
    s'il te plaît|s'il vous plaît|per favore|por favor|c'est bon|not yet|pas encore|what do you mean
    tu veux dire
    """.replace("\n", "|").split("|")
    if phrase.strip()
)

# Beginnings of turns that name something new but lean on the wish before them.
_ELLIPTIC = re.compile(
    r"(?:and|et|und|but|mais|or|ou|y)\b"
    r"|(?:what|how) about\b|what if\b|qu'en est[- ]il\b|quid d"
    r"|(?:the same|same|pareil|idem|la même|le même|même chose|likewise)\b"
    r"|(?:in|en|with|avec|for|pour|using|sans|without|on|sur|mit|für|con|via|under|sous)\b"
)
_ANAPHORA = re.compile(
    r"\b(?:it|that|this|them|those|the (?:above|previous)|instead|ça|cela|celui-ci|ceci|plutôt|ci-dessus)\b"
    r"|(?:^|\s)l'\w|\w-(?:le|la|les)\b"
)
_MAX_ELLIPTIC_WORDS = 7
_MAX_ANAPHORIC_WORDS = 6


def follow_up_kind(words: str) -> FollowUp:
    """The kind of a turn of a conversation, judged by the turn alone."""
    if len(words) > _MAX_CHARS or "\n" in words.strip():
        return "none"
    tokens = words.casefold().replace("’", "'").strip(_EDGES).split()
    while tokens and tokens[0].strip(_EDGES) in _COURTESIES:
        del tokens[0]
    while tokens and tokens[-1].strip(_EDGES) in _COURTESIES:
        del tokens[-1]
    rest = " ".join(tokens).strip(_EDGES)
    if not rest or rest in _CONTINUATIONS:
        return "continuation"
    if len(tokens) <= _MAX_ELLIPTIC_WORDS and _ELLIPTIC.match(rest):
        return "elliptic"
    if len(tokens) <= _MAX_ANAPHORIC_WORDS and _ANAPHORA.search(rest):
        return "elliptic"
    return "none"
