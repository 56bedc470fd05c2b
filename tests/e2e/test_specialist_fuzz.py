"""Whatever is sent, the specialist answers with something that it states, and lives on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests import tiny_chat
from tests.specialist_process import SpecialistProcess, specialist_process

CALM = settings(
    deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=25
)
OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/v1/pin_lora_adapter"),
    ("GET", "/v1/models"),
    ("GET", "/v1/adapters"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def specialist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpecialistProcess]:
    root: Path = tmp_path_factory.mktemp("fuzz")
    with specialist_process(
        root / "home", tiny_chat.save_scripted(root / "base"), default_max_tokens=8, request_timeout_s=20
    ) as running:
        yield running
        assert running.process.poll() is None, "the specialist has died"
        assert running.get("/health")[0] == 200
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def schema(specialist: SpecialistProcess) -> Any:
    return schemathesis.openapi.from_url(f"{specialist.url}/openapi.json")


def test_every_operation_is_fuzzed(schema: Any) -> None:
    found = {(result.ok().method.upper(), result.ok().path) for result in schema.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_schemathesis(specialist: SpecialistProcess, schema: Any, method: str, path: str) -> None:
    operation = schema[path][method]
    stated = {int(status) for status in operation.definition.raw["responses"] if status.isdigit()}
    modes = [schemathesis.GenerationMode.POSITIVE]
    if operation.body:
        modes.append(schemathesis.GenerationMode.NEGATIVE)
    for mode in modes:

        @CALM
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = "base"
            response = case.call(timeout=30)
            status = response.status_code
            assert status in stated or status == 200, (status, response.text, case.body)
            if status >= 400:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            assert "Traceback" not in response.text
            assert "x-request-id" in response.headers

        holds()
