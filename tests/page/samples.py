"""What a gateway with two specialists and a dozen adapters says, in the shape of its documents."""

from __future__ import annotations

import hashlib
from typing import Any


def digest(name: str) -> str:
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()


def adapter(name: str, state: str = "resident", *, requests: int = 0, **more: Any) -> dict[str, Any]:
    resident = state == "resident"
    return {
        "id": f"mascarade-{name}",
        "state": state,
        "digest": digest(name) if resident else None,
        "rank": 16 if resident else None,
        "slot": 1 if resident else None,
        "pinned": False,
        "requests": requests,
        "active": 0,
        "reason": None,
        **more,
    }


def specialist(name: str, port: int, adapters: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    resident = sum(item["state"] == "resident" for item in adapters)
    return {
        "name": name,
        "url": f"http://127.0.0.1:{port}",
        "state": "up",
        "reason": None,
        "checked_at": 1_800_000_000.0,
        "in_flight": 1,
        "queue": {"waiting": 0, "running": 1, "limit": 256},
        "served": 812,
        "failed": 0,
        "base": {"id": "mlx-community/Qwen3.6-35B-A3B-4bit", "digest": digest("base")},
        "bank": {"slots": 33, "used": resident + 1, "bytes": 612_000_000, "budget_bytes": 2**32, "max_rank": 16},
        "adapters": adapters,
        **more,
    }


HARDWARE = [
    adapter("kicad", requests=412, pinned=True, active=1),
    adapter("spice", requests=187),
    adapter("stm32", requests=96),
    adapter("emc", requests=41),
    adapter("power", "available", requests=12),
    adapter("components-review", "available"),
    adapter("freecad", "quarantined", reason="it answers arithmetic worse than the base: 0.41 against 0.78"),
]
CODE = [
    adapter("coder", requests=530, pinned=True, active=2),
    adapter("sql", requests=143),
    adapter("rust", requests=61),
    adapter("traduction-tech", "available", requests=8),
    adapter("lua-upy", "missing", reason="no weights are installed"),
]
ROUTES = {
    "kicad": "kicad", "kicad-dsl": "kicad", "kicad-pcb": "kicad", "spice": "spice", "stm32": "stm32", "emc": "emc",
    "power": "power", "electronics-hw": "components-review", "freecad": "freecad", "python": "coder", "cpp": "coder",
    "sql": "sql", "rust": "rust", "traduction-tech": "traduction-tech", "lua-upy": "lua-upy",
}  # fmt: skip

STATUS: dict[str, Any] = {
    "ready": True,
    "parts": {
        "router": {"ready": True, "reason": None, "version": "v0003", "notice": None},
        "hardware": {"ready": True, "reason": None, "kind": "specialist"},
        "code": {"ready": True, "reason": None, "kind": "specialist"},
    },
    "gateway": {
        "version": "0.1.0",
        "pid": 4711,
        "uptime_s": 93_784.0,
        "requests": 1642,
        "requests_per_s": 3.4,
        "p50_ms": 812.4,
        "active": 2,
        "memory_peak_bytes": 318_000_000,
        "conversations": 37,
        "config_loaded_at": 1_800_000_000.0,
        "config_error": None,
        "log_error": None,
        "keys_required": False,
        "admin_token_required": False,
    },
    "router": {
        "ready": True,
        "version": "v0003",
        "notice": None,
        "reason": None,
        "loaded_at": 1_800_000_000.0,
        "domains": 47,
        "labels": ["kicad", "kicad-pcb", "general"],
        "thresholds": {"kicad-pcb": 0.46, "kicad": 0.38, "emc": 0.52, "power": 0.44, "electronics-hw": 0.35},
        "out_of_domain": 0.08,
        "min_score": {},
        "metrics": {"n": 612, "top1": 0.861, "top3": 0.962, "macro_f1": 0.853, "weighted_f1": 0.86, "ece": 0.031},
        "current": "v0003",
        "versions": ["v0001", "v0002", "v0003"],
        "cache": {"entries": 512, "hits": 380, "misses": 1262},
        "queue": 0,
        "encode_p50_ms": 3.1,
    },
    "specialists": [specialist("hardware", 9360, HARDWARE), specialist("code", 9361, CODE)],
    "upstreams": [
        {
            "name": "eurollm",
            "url": "http://127.0.0.1:8500",
            "state": "up",
            "reason": None,
            "checked_at": 1_800_000_000.0,
            "in_flight": 0,
            "queue": {"waiting": 0, "running": 0, "limit": None},
            "served": 23,
            "failed": 0,
            "model": "EuroLLM-22B-Instruct-2512",
        }
    ],
    "routes": {domain: {"kind": "adapter", "name": f"mascarade-{name}"} for domain, name in ROUTES.items()},
    "processes": None,
}

DECISION: dict[str, Any] = {
    "domain": "kicad-pcb",
    "score": 0.9414,
    "reason": "classified",
    "selections": [{"domain": "kicad-pcb", "score": 0.9414}, {"domain": "electronics-hw", "score": 0.4102}],
    "scores": [
        ["kicad-pcb", 0.9414], ["electronics-hw", 0.4102], ["kicad", 0.3121],
        ["power", 0.1208], ["emc", 0.0714], ["general", 0.0112],
    ],
    "target": {"specialist": "hardware", "adapter": "mascarade-kicad"},
    "router": "v0003",
    "encode_ms": 3.12,
}  # fmt: skip

ANSWER_HEADERS = {
    "x-router-domain": "kicad-pcb",
    "x-router-score": "0.9414",
    "x-router-reason": "classified",
    "x-router-adapter": "mascarade-kicad",
    "x-router-specialist": "hardware",
    "x-router-version": "v0003",
    "x-adapter-digest": digest("kicad"),
    "x-request-id": "req-1",
}

PIECES = [
    "About ", "1.4 mm ", "for a rise of 10 °C ", "on an outer layer, ", "by IPC-2221.\n\n",
    "Set it as a net class:\n\n", "```scheme\n", '(net_class "Power"\n', "  (clearance 0.2)\n", "  (trace_width 1.4)",
    ")\n", "```\n", "\nThen run DRC once more.",
]  # fmt: skip


def decision(number: int, domain: str, name: str, server: str, **more: Any) -> dict[str, Any]:
    return {
        "time": 1_800_000_000.0 - 37 * number,
        "request_id": f"req-{number}",
        "endpoint": "/chat/completions",
        "model": "auto",
        "domain": domain,
        "score": 0.97 - 0.03 * number,
        "reason": "classified",
        "adapter": name,
        "specialist": server,
        "router": "v0003",
        "status": 200,
        "error": None,
        "stream": True,
        "cached": False,
        "sticky": False,
        "retries": 0,
        "detail": None,
        "prompt_chars": 120,
        "encode_ms": 3.1,
        "overhead_ms": 0.4,
        "first_byte_ms": 180.0 + 13 * number,
        "total_ms": 1420.0 + 91 * number,
        "prompt_tokens": 34,
        "completion_tokens": 96 + number,
        **more,
    }


DECISIONS = [
    decision(1, "kicad-pcb", "mascarade-kicad", "hardware"),
    decision(2, "sql", "mascarade-sql", "code"),
    decision(3, "general", "base", "code", reason="below_threshold", score=0.31),
    decision(4, "freecad", "base", "hardware", reason="unavailable", detail="adapter mascarade-freecad is quarantined"),
    decision(5, "general", "mascarade-rust", "code", reason="explicit", model="mascarade-rust", score=1.0),
    decision(6, "python", "-", "-", status=503, error="upstream_unavailable", completion_tokens=0, first_byte_ms=None),
    decision(7, "chat-fr", "none", "eurollm"),
    decision(8, "general", "base", "hardware", reason="out_of_domain", score=0.05),
]
