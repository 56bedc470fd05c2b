from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_router.errors import InvalidRequest
from mlx_router.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    LoadAdapterRequest,
    field_path,
    parse_body,
)

HI: list[Any] = [{"role": "user", "content": "hi"}]


def chat(**changes: Any) -> ChatRequest:
    return parse_body(ChatRequest, json.dumps({"model": "m", "messages": HI, **changes}).encode())


def test_a_full_request() -> None:
    request = chat(
        temperature=1, top_p=0.5, stop="x", stream=True, stream_options={"include_usage": True}, max_tokens=5,
        max_completion_tokens=7, unknown_field=1, logit_bias={"5": -100}, tool_choice="none", n=2,
    )  # fmt: skip
    assert request.stops == ("x",)
    assert request.include_usage
    assert request.token_limit == 7
    assert request.temperature == 1.0


def test_messages_keep_what_templates_read() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    request = chat(
        messages=[
            *HI,
            {"role": "assistant", "content": None, "tool_calls": calls},
            {
                "role": "tool",
                "tool_call_id": "1",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
        ]
    )
    assert request.messages[1].model_dump()["tool_calls"] == calls
    assert request.messages[1].text() == ""
    assert request.messages[2].text() == "ab"
    image = chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}])
    assert image.messages[0].other_parts() == ["image_url"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"top_logprobs": 3}, None),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"model": ""}, "model"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, None),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_refusals_name_the_field(changes: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**changes)
    if param is not None and param != "logit_bias.1":
        assert caught.value.param == param


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(temperature=5, n=0)
    assert "temperature" in caught.value.message
    assert "n:" in caught.value.message


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[1]", b"nul", b"\xff", b'{"model": "\\ud800", "messages": []}', b'{"a": NaN}']
)
def test_what_is_not_json(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_body(ChatRequest, raw)


def test_deep_nesting_is_refused_not_recursed() -> None:
    with pytest.raises(InvalidRequest):
        parse_body(ChatRequest, b'{"model": "m", "messages": ' + b"[" * 5000)


def test_prompts_of_completions() -> None:
    def prompts(prompt: Any) -> list[Any]:
        return parse_body(CompletionRequest, json.dumps({"model": "m", "prompt": prompt}).encode()).prompts

    assert prompts("a") == ["a"]
    assert prompts(["a", "b"]) == ["a", "b"]
    assert prompts([1, 2]) == [[1, 2]]
    assert prompts([[1], [2, 3]]) == [[1], [2, 3]]
    for bad in ("", [], [[]], [""], [True], [1.5], ["a"] * 65):
        with pytest.raises(InvalidRequest):
            prompts(bad)


def test_names_of_adapters_are_names() -> None:
    for bad in ("../x", "a/b", "", ".hidden", "a b"):
        with pytest.raises(InvalidRequest):
            parse_body(LoadAdapterRequest, json.dumps({"lora_name": bad, "lora_path": "p"}).encode())


def test_field_paths() -> None:
    assert field_path(("messages", 0, "content", "list[ContentPart]", 1, "type")) == "messages[0].content[1].type"
    assert field_path(("stop", "str")) == "stop"


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["model", "messages", "role", "content", "stop", "n", "tools", "x"]), inner, max_size=5
            )
        ),
    )
)
def test_any_json_is_parsed_or_refused(value: Any) -> None:
    raw = json.dumps({"model": "m", "messages": HI, **value} if isinstance(value, dict) else value).encode()
    for model in (ChatRequest, CompletionRequest):
        with contextlib.suppress(InvalidRequest):  # anything else would be a 500
            parse_body(model, raw)
