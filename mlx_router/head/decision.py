"""From scores to a decision: a pure function, without clocks, files or arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_SELECTIONS = 4

CLASSIFIED = "classified"
BELOW_THRESHOLD = "below_threshold"
OUT_OF_DOMAIN = "out_of_domain"
EXPLICIT = "explicit"
UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Selection:
    """A label at or above its threshold."""

    domain: str
    score: float  # calibrated probability


@dataclass(frozen=True, slots=True)
class Target:
    """Where a domain is answered."""

    specialist: str | None
    adapter: str | None  # None: the base without an adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What a score must reach, all calibrated probabilities in [0, 1]."""

    per_label: Mapping[str, float]
    out_of_domain: float  # below this for every label, the prompt is like nothing in the corpus
    evidence: float | None = None  # and so it is where the best logit is below this, however the labels share it
    fallback: str = "general"  # the domain used then
    fallback_share: float = 1.0  # and used where its own probability is this share of the best, or more


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Where a prompt goes and why."""

    domain: str
    score: float
    reason: str
    selections: tuple[Selection, ...] = ()
    scores: tuple[tuple[str, float], ...] = ()  # the best, highest first, whatever the threshold
    target: Target | None = None
    router: str = ""  # version
    encode_ms: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The object of `route --json` and `POST /v1/route`."""
        return {
            "domain": self.domain,
            "score": round(self.score, 4),
            "reason": self.reason,
            "selections": [{"domain": s.domain, "score": round(s.score, 4)} for s in self.selections],
            "scores": [[label, round(score, 4)] for label, score in self.scores],
            "target": None
            if self.target is None
            else {"specialist": self.target.specialist, "adapter": self.target.adapter},
            "router": self.router,
            "encode_ms": round(self.encode_ms, 2),
        }


def decide(
    scores: Sequence[tuple[str, float]],
    thresholds: Thresholds,
    *,
    evidence: float | None = None,
    top: int = 5,
    router: str = "",
    encode_ms: float = 0.0,
    max_selections: int = MAX_SELECTIONS,
) -> Decision:
    """Decide on calibrated scores, best first, and the best logit, where it is known.

    The best label wins if it reaches its threshold and is clear of the fallback's own probability: the base answers a
    specialist's prompt better than a specialist answers anybody's. Else the fallback domain does, with `out_of_domain`
    where no label comes near, `below_threshold` otherwise. Probabilities share one whole among the labels, so a prompt
    of words never seen may still give one of them a large share: the logit says how much there was to share. The
    reported score is the best label's in every case.
    """
    best, score = scores[0]
    rival = next((value for label, value in scores if label == thresholds.fallback), 0.0)
    clear = best == thresholds.fallback or rival < thresholds.fallback_share * score
    passed = [Selection(label, value) for label, value in scores if value >= thresholds.per_label.get(label, 0.5)]
    strange = evidence is not None and thresholds.evidence is not None and evidence < thresholds.evidence
    if passed and passed[0].domain == best and clear and not strange:
        domain, reason = best, CLASSIFIED
    elif strange or score < thresholds.out_of_domain:
        domain, reason = thresholds.fallback, OUT_OF_DOMAIN
    else:
        domain, reason = thresholds.fallback, BELOW_THRESHOLD
    return Decision(
        domain=domain,
        score=score,
        reason=reason,
        selections=tuple(passed[:max_selections]) if reason == CLASSIFIED else (),
        scores=tuple(scores[:top]),
        router=router,
        encode_ms=encode_ms,
    )
