"""Checkpoints of the original system become versions here, for any hidden width and any number of domains."""

from __future__ import annotations

import dataclasses
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

from mlx_router.artifacts.provenance import imported_record
from mlx_router.artifacts.store import RouterStore
from mlx_router.files import write_json
from mlx_router.head.weights import HEAD_FILE, load_version

COPIED = (HEAD_FILE, "label_map.json")
TRAINING_KEYS = ("loss", "epochs", "batch_size", "lr")


def import_checkpoint(store: RouterStore, origin: Path) -> str:
    """Copy a checkpoint into a new version and return its name. Raises VersionCorrupt naming every problem."""
    meta, _ = load_version(origin)
    raw = json.loads((origin / "meta.json").read_text(encoding="utf-8"))
    if not meta.training:
        meta = dataclasses.replace(meta, training={key: raw[key] for key in TRAINING_KEYS if key in raw})
    with store.draft() as draft:
        for name in COPIED:
            shutil.copyfile(origin / name, draft / name)
        write_json(draft / "meta.json", meta.to_json())
        write_json(draft / "metrics.json", {"test": dict(meta.metrics)})
        previous, now = store.current(), datetime.now(UTC)
        return store.publish(draft, lambda folder, name: imported_record(folder, name, origin, previous, now))
