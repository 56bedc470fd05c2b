from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlx_router.encoder.weights import MODEL_FILE, TOKENIZER_FILE, find_encoder
from mlx_router.errors import EncoderError, WeightsMismatch


def test_installed_package_is_found_and_verified() -> None:
    files = find_encoder()
    assert files.source == "package"
    assert len(files.digest) == 64


def test_explicit_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"lacks model\.safetensors and tokenizer\.json"):
        find_encoder(tmp_path)


def test_changed_weights_are_refused_by_name(tmp_path: Path) -> None:
    original = find_encoder()
    shutil.copy(original.tokenizer, tmp_path / TOKENIZER_FILE)
    data = bytearray(original.model.read_bytes())
    data[-1] ^= 1
    (tmp_path / MODEL_FILE).write_bytes(data)
    with pytest.raises(WeightsMismatch, match=r"model\.safetensors: sha256 .* expected 53aa5117") as error:
        find_encoder(tmp_path)
    assert TOKENIZER_FILE not in error.value.message
