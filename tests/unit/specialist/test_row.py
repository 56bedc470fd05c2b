from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_router.protocol.chunks import TokenLogprob
from mlx_router.specialist.job import Delta, Finished, Job
from mlx_router.specialist.loading import Base
from mlx_router.specialist.row import RowText, Texts
from tests import tiny_chat

WEATHER: tuple[Any, ...] = ({"type": "function", "function": {"name": "get_weather", "parameters": {}}},)


@pytest.fixture(scope="module")
def texts(scripted_base: Base) -> Texts:
    return Texts(scripted_base.tokenizer)


def run(texts: Texts, text: str, **changes: Any) -> tuple[Delta, Finished, list[Delta]]:
    """Feed a text's tokens; everything that came out, joined, the end, and the pieces."""
    fields: dict[str, Any] = {"text_state": "normal"} | changes
    row = RowText(Job(id="j", adapter=None, prompt=(1,), max_tokens=99, deadline_s=0.0, **fields), texts)
    pieces = []
    tokens = tiny_chat.tokenizer().encode(text, add_special_tokens=False).ids
    for token in tokens:
        pieces.append(row.add(token, TokenLogprob("t", b"t", -1.0) if fields.get("logprobs") is not None else None))
        if row.stopped:
            break
    delta, finished = row.finish("stop", len(pieces))
    pieces.append(delta)
    joined = Delta(
        text="".join(piece.text for piece in pieces),
        reasoning="".join(piece.reasoning for piece in pieces),
        tool_calls=tuple(call for piece in pieces for call in piece.tool_calls),
        logprobs=tuple(token for piece in pieces for token in piece.logprobs),
    )
    return joined, finished, pieces


def test_reasoning_then_text(texts: Texts) -> None:
    delta, finished, _ = run(texts, "<think>\nbecause of this\n</think>\n\nHello there")
    assert delta.reasoning == "because of this\n"
    assert delta.text == "Hello there"
    assert 0 < finished.reasoning_tokens < finished.completion_tokens


def test_a_prompt_that_opened_the_reasoning(texts: Texts) -> None:
    delta, _, _ = run(texts, "so</think>yes", text_state="reasoning")
    assert (delta.reasoning, delta.text) == ("so", "yes")


def test_text_keeps_its_spaces(texts: Texts) -> None:
    assert run(texts, "\n  indented")[0].text == "\n  indented"
    assert run(texts, " raw <think> text", text_state="raw")[0].text == " raw <think> text"


def test_markers_across_tokens_are_not_emitted_in_part(texts: Texts) -> None:
    """The marker's characters may come as ordinary tokens: < th ink >."""
    _, _, pieces = run(texts, "a <thin line")
    assert "".join(piece.text for piece in pieces) == "a <thin line"


def test_tool_calls(texts: Texts) -> None:
    one = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'
    delta, finished, _ = run(texts, f"Let me look. {one}\n{one}", tools=WEATHER)
    assert [(call.name, json.loads(call.arguments)) for call in delta.tool_calls] == [("f", {"x": "é"})] * 2
    assert delta.text == "Let me look. "
    assert finished.reason == "tool_calls"


def test_a_call_that_cannot_be_parsed_is_shown(texts: Texts) -> None:
    delta, finished, _ = run(texts, "<tool_call>{no json}</tool_call>", tools=WEATHER)
    assert delta.text == "<tool_call>{no json}</tool_call>"
    assert delta.tool_calls == ()
    assert finished.reason == "stop"
    cut, _, _ = run(texts, '<tool_call>{"name": "f", "argu', tools=WEATHER)
    assert cut.text.startswith('<tool_call>{"name": "f", "argu')


def test_a_stop_string_ends_everything(texts: Texts) -> None:
    delta, _, pieces = run(texts, "one two three", stops=("o th",))
    assert delta.text == "one tw"
    assert not pieces[-1]
    delta, _, _ = run(texts, "<think>a STOP b</think>c", stops=("STOP",))
    assert (delta.reasoning, delta.text) == ("a ", "")


def test_text_before_a_stop_string_is_whole(texts: Texts) -> None:
    """Also where it could have begun a marker, and was held back for that."""
    assert run(texts, "if a <STOP b", stops=("STOP",))[0].text == "if a <"
    assert run(texts, "<think>a </thSTOP", stops=("STOP",))[0].reasoning == "a </th"
    assert run(texts, "a <STOP", stops=("STOP",), text_state="raw")[0].text == "a <"


def test_every_token_has_its_logprob_once(texts: Texts) -> None:
    text = "Hello 🙂 there"
    delta, _, pieces = run(texts, text, logprobs=0)
    assert len(delta.logprobs) == len(tiny_chat.tokenizer().encode(text, add_special_tokens=False).ids)
    assert all(piece.text for piece in pieces if piece.logprobs)
