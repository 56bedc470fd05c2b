"""`mlx-router adapter` against a specialist that really runs, while it answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner, Result

from mlx_router.cli import main
from mlx_router.lora.registry import Registry
from tests import tiny_chat
from tests.adapter_files import write_adapter
from tests.specialist_process import SpecialistProcess, specialist_process

NAME = "mascarade-kicad"
HI: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    tiny_chat.save_scripted(root / "base")
    tiny_chat.save_starter(root / "endless", "loop")
    tiny_chat.save_starter(root / "broken", "#1")
    return root


@pytest.fixture(scope="module")
def specialist(root: Path) -> Iterator[SpecialistProcess]:
    top = '[security]\nadmin_token = "secret"'
    with specialist_process(root / "home", root / "base", top=top, adapters=[NAME], slots=3) as running:
        yield running


def run(specialist: SpecialistProcess, *words: str) -> Result:
    arguments = ["--config", str(specialist.home / "mlx-router.toml"), "--home", str(specialist.home), "adapter"]
    return CliRunner().invoke(main, [*arguments, *words])


def run_json(specialist: SpecialistProcess, *words: str) -> Any:
    result = run(specialist, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def start_of(specialist: SpecialistProcess) -> tuple[str, str]:
    """The first token of an answer, and the digest that the server names."""
    with openai.OpenAI(base_url=specialist.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        raw = client.chat.completions.with_raw_response.create(model=NAME, messages=HI, max_tokens=1)
        return raw.parse().choices[0].message.content or "", raw.headers["x-adapter-digest"]


def test_an_adapters_life(specialist: SpecialistProcess, root: Path) -> None:
    first = run_json(specialist, "add", NAME, str(root / "endless"))
    loaded = run_json(specialist, "load", NAME)
    assert loaded["servers"][0]["digest"] == first["digest"]
    assert start_of(specialist) == ("loop", first["digest"])
    run_json(specialist, "pin", NAME)
    listed = {row["name"]: row for row in run_json(specialist, "list")}
    assert (listed[NAME]["resident_on"], listed[NAME]["pinned"]) == (["test"], True)
    assert run_json(specialist, "show", NAME)["servers"][0]["pinned"] is True

    stream_ended = threading.Event()
    tokens: list[str] = []
    began = threading.Event()

    def stream() -> None:
        with openai.OpenAI(base_url=specialist.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
            for chunk in client.chat.completions.create(model=NAME, messages=HI, max_tokens=400, stream=True):
                tokens.append(chunk.choices[0].delta.content or "")
                began.set()
        stream_ended.set()

    reader = threading.Thread(target=stream)
    reader.start()
    assert began.wait(30)
    swapped = run_json(specialist, "swap", NAME, str(root / "broken"))
    assert start_of(specialist) == ("#1", swapped["digest"])
    reader.join(60)
    assert stream_ended.is_set()
    assert "#" not in "".join(tokens)  # the request in flight ended on the version that it began with
    assert swapped["previous_digest"] == first["digest"]
    reply = swapped["servers"][0]
    assert (reply["status"], reply["previous_digest"]) == ("replaced", first["digest"])
    assert reply["ms"]["total"] > 0
    assert Registry(specialist.home).find(NAME).sha256 == swapped["digest"]

    failed = run(specialist, "swap", NAME, str(write_adapter(root / "other-base")))
    assert failed.exit_code == 1
    assert "does not fit the base model" in failed.stderr
    assert start_of(specialist) == ("#1", swapped["digest"])
    assert Registry(specialist.home).find(NAME).sha256 == swapped["digest"]

    run_json(specialist, "pin", NAME, "--off")
    run_json(specialist, "quarantine", NAME, "for the test")
    with pytest.raises(openai.NotFoundError):
        start_of(specialist)
    run_json(specialist, "release", NAME)
    run_json(specialist, "load", NAME)
    assert start_of(specialist)[1] == swapped["digest"]
    run_json(specialist, "remove", NAME)
    with pytest.raises(openai.NotFoundError):
        start_of(specialist)
