"""What stands in a router version's meta.json, ours and the original system's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_router.errors import VersionCorrupt

ORIGINAL_KEYS = ("embedding_model", "embedding_dim", "hidden_dim", "num_domains", "domains", "label_map")
ARCH = "sentence_embedding + MLP(hidden) + linear_head (sigmoid at inference)"


@dataclass(frozen=True)
class Meta:
    """meta.json. The fields after `domains` are ours; a checkpoint of the original system lacks them."""

    embedding_model: str
    embedding_dim: int
    hidden_dim: int
    domains: tuple[str, ...]
    calibration: Mapping[str, Any] | None = None  # slope, offset: a list each
    thresholds: Mapping[str, float] = field(default_factory=dict)
    out_of_domain: float = 0.05
    evidence: float | None = None  # what the best logit must reach
    fallback: str = "general"
    fallback_share: float = 1.0  # of the best probability, at which the fallback wins
    lexical_weight: float = 0.0  # of lexical.safetensors; 0 where there is none
    encoder: Mapping[str, Any] = field(default_factory=dict)  # kind, sha256, runtime it was trained through
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The original system's keys first, so that its loader finds them."""
        return {
            "embedding_model": self.embedding_model,
            "embedding_dim": self.embedding_dim,
            "hidden_dim": self.hidden_dim,
            "num_domains": len(self.domains),
            "domains": list(self.domains),
            "label_map": label_map(self.domains),
            "arch": ARCH,
            "calibration": self.calibration,
            "thresholds": dict(self.thresholds),
            "out_of_domain": self.out_of_domain,
            "evidence": self.evidence,
            "fallback": self.fallback,
            "fallback_share": self.fallback_share,
            "lexical_weight": self.lexical_weight,
            "encoder": dict(self.encoder),
            "training": dict(self.training),
            "metrics": dict(self.metrics),
        }


def label_map(domains: Sequence[str]) -> dict[str, int]:
    """Label -> position of its logit."""
    return {label: index for index, label in enumerate(domains)}


def read_meta(folder: Path) -> Meta:
    """Read and check meta.json and label_map.json. Raises VersionCorrupt naming every problem."""
    raw, problems = _read_json(folder / "meta.json")
    mapping, more = _read_json(folder / "label_map.json")
    problems += more
    if not problems:
        problems = _inconsistencies(raw, mapping)
    if problems:
        raise VersionCorrupt.from_problems(f"{folder} is not a router version", problems)
    ours = (
        "calibration",
        "thresholds",
        "out_of_domain",
        "evidence",
        "fallback",
        "fallback_share",
        "lexical_weight",
        "encoder",
        "training",
        "metrics",
    )
    return Meta(
        embedding_model=raw["embedding_model"],
        embedding_dim=raw["embedding_dim"],
        hidden_dim=raw["hidden_dim"],
        domains=tuple(raw["domains"]),
        **{key: raw[key] for key in ours if key in raw},
    )


def _read_json(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [f"{path.name}: {error.strerror or error}"]
    except ValueError as error:
        return {}, [f"{path.name}: not JSON: {error}"]
    return (value, []) if isinstance(value, dict) else ({}, [f"{path.name}: expected an object"])


def _inconsistencies(raw: dict[str, Any], mapping: dict[str, Any]) -> list[str]:
    problems = [f"meta.json: lacks {key!r}" for key in ORIGINAL_KEYS if key not in raw]
    if problems:
        return problems
    domains = raw["domains"]
    if not isinstance(domains, list) or not domains or not all(isinstance(name, str) for name in domains):
        return ["meta.json: 'domains' must be a list of names"]
    if raw["num_domains"] != len(domains):
        problems.append(f"meta.json: num_domains {raw['num_domains']}, but {len(domains)} domains are listed")
    if len(set(domains)) != len(domains):
        problems.append("meta.json: a domain is listed twice")
    for name, found in (("meta.json", raw["label_map"]), ("label_map.json", mapping)):
        if found != label_map(domains):
            problems.append(f"{name}: the label map does not follow the order of 'domains'")
    if not isinstance(raw["embedding_model"], str):
        problems.append(f"meta.json: embedding_model must be a name, got {raw['embedding_model']!r}")
    for key in ("embedding_dim", "hidden_dim"):
        if not isinstance(raw[key], int) or raw[key] < 1:
            problems.append(f"meta.json: {key} must be a positive integer, got {raw[key]!r}")
    calibration = raw.get("calibration")
    if calibration is not None and any(len(calibration.get(key, ())) != len(domains) for key in ("slope", "offset")):
        problems.append(f"meta.json: calibration needs {len(domains)} slopes and offsets")
    return problems
