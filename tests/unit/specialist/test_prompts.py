from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_router.errors import ContextLengthExceeded, InvalidRequest
from mlx_router.protocol.requests import ChatRequest, CompletionRequest, parse_body
from mlx_router.specialist.loading import Base, load_base
from mlx_router.specialist.prompts import Prompts
from tests import tiny_chat

HI: list[Any] = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def prompts(scripted_base: Base) -> Prompts:
    return Prompts(scripted_base, default_max_tokens=100, timeout_s=5.0)


def chat(**changes: Any) -> ChatRequest:
    return parse_body(ChatRequest, json.dumps({"model": "base", "messages": HI, **changes}).encode())


def text(tokens: tuple[int, ...]) -> str:
    return str(tiny_chat.tokenizer().decode(list(tokens), skip_special_tokens=False))


def test_chat(prompts: Prompts) -> None:
    rendered = prompts.chat(chat(messages=[{"role": "developer", "content": "be brief"}, *HI]))
    assert text(rendered.tokens) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered.text_state == "normal"
    assert rendered.boundaries == ()


def test_parts_and_tool_calls_become_plain(prompts: Prompts) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    rendered = prompts.chat(
        chat(
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "done", "tool_call_id": "1"},
            ]
        )
    )
    assert "user\nab<" in text(rendered.tokens)
    assert '<tool_call>f{"a": "é"}</tool_call>' in text(rendered.tokens)
    with pytest.raises(InvalidRequest, match="not JSON"):
        prompts.chat(chat(messages=[{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]))


def test_tools(prompts: Prompts) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    assert "get_weather" in text(prompts.chat(chat(tools=[TOOL])).tokens)
    assert prompts.chat(chat(tools=[TOOL], tool_choice="none")).tools == ()
    named = prompts.chat(chat(tools=[TOOL, other], tool_choice={"type": "function", "function": {"name": "other"}}))
    assert [tool["function"]["name"] for tool in named.tools] == ["other"]


def test_what_the_template_refuses(prompts: Prompts) -> None:
    with pytest.raises(InvalidRequest, match="unknown role"):
        prompts.chat(chat(messages=[{"role": "function", "content": "x"}]))
    for options in ({"tokenize": False}, {"chat_template": "{{ 1 }}"}, {"x": [1]}, {"a b": 1}):
        with pytest.raises(InvalidRequest) as caught:
            prompts.chat(chat(chat_template_kwargs=options))
        assert caught.value.param == "chat_template_kwargs"
    assert prompts.chat(chat(chat_template_kwargs={"enable_thinking": False})).tokens


def test_a_template_that_opens_the_reasoning(prompts: Prompts) -> None:
    assert prompts._text_state([1, tiny_chat.token("<think>"), 2]) == "reasoning"
    assert prompts._text_state([tiny_chat.token("<think>"), tiny_chat.token("</think>")]) == "normal"


@pytest.mark.parametrize("words", ["what does <think> mean?", "<think>", "<think>" + " and so on" * 9])
def test_a_users_marker_opens_no_reasoning(prompts: Prompts, words: str) -> None:
    """Only the template does, after the last turn."""
    request = chat(messages=[{"role": "user", "content": words}])
    assert prompts.chat(request).text_state == "normal"
    opened = [*prompts.chat(request).tokens, tiny_chat.token("<think>"), tiny_chat.byte_tokens()[0x0A]]
    assert prompts._text_state(opened) == "reasoning"


def test_boundaries_where_states_cannot_be_cut(scripted_base: Base) -> None:
    prompts = Prompts(replace(scripted_base, states_can_be_cut=False), default_max_tokens=100, timeout_s=5.0)
    system = {"role": "system", "content": "be brief"}
    first = prompts.chat(chat(messages=[system, *HI]))
    second = prompts.chat(
        chat(messages=[system, *HI, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}])
    )
    assert len(first.boundaries) == 2
    for cut in first.boundaries:
        assert first.tokens[:cut] == second.tokens[:cut]  # what is kept serves the next turn


def test_the_boundary_behind_the_system_prompt_needs_no_prompt_without_a_user(
    scripted_path: Path, tmp_path: Path
) -> None:
    """Qwen3.5's templates refuse messages without a user's turn."""
    query = "{%- if not messages | selectattr('role', 'equalto', 'user') | list %}"
    refuse = "{{ raise_exception('No user query found in messages.') }}{%- endif %}"
    shutil.copytree(scripted_path, tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    settings["chat_template"] = query + refuse + settings["chat_template"]
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(settings))
    base = replace(load_base(str(tmp_path / "base"), tmp_path, max_context=2048), states_can_be_cut=False)
    prompts = Prompts(base, default_max_tokens=100, timeout_s=5.0)
    system = {"role": "system", "content": "be brief"}
    for words in ("hi", "xylophone", "yes"):
        rendered = prompts.chat(chat(messages=[system, {"role": "user", "content": words}]))
        shared = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n"
        assert text(rendered.tokens[: rendered.boundaries[0]]) == shared
        assert len(rendered.boundaries) == 2
    tools = prompts.chat(chat(tools=[TOOL]))
    assert "get_weather" in text(tools.tokens[: tools.boundaries[0]])  # they stand in the system prompt


def jobs(prompts: Prompts, request: ChatRequest, limit: int | None, count: int = 1) -> list[Any]:
    prepared = prompts.chat(request)
    ids = [str(index) for index in range(count)]
    return prompts.jobs(prepared, request, request_id="r", ids=ids, adapter=None, limit=limit, logprobs=None)


def test_limits(prompts: Prompts) -> None:
    used = len(prompts.chat(chat()).tokens)
    assert jobs(prompts, chat(), None)[0].max_tokens == 100
    assert jobs(prompts, chat(), 2048 - used)[0].max_tokens == 2048 - used
    with pytest.raises(ContextLengthExceeded) as caught:
        jobs(prompts, chat(), 2049 - used)
    for number in (2048, used, 2049 - used, 2049):
        assert str(number) in caught.value.message
    with pytest.raises(ContextLengthExceeded) as caught:
        jobs(prompts, chat(messages=[{"role": "user", "content": "y " * 3000}]), None)
    assert caught.value.param == "messages"


class Reading:
    """A tokenizer that counts the characters that it is given to encode."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def encode(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self._tokenizer.encode(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_what_cannot_fit_is_not_read_to_its_end(scripted_base: Base) -> None:
    reading = Reading(scripted_base.tokenizer)
    prompts = Prompts(replace(scripted_base, tokenizer=reading), default_max_tokens=100, timeout_s=5.0)
    long = "lorem ipsum " * 100_000
    with pytest.raises(ContextLengthExceeded, match="2048") as caught:
        prompts.chat(chat(messages=[{"role": "user", "content": long}]))
    assert caught.value.param == "messages"
    tool = {"type": "function", "function": {"name": "f", "description": long}}
    with pytest.raises(ContextLengthExceeded):
        prompts.chat(chat(tools=[tool]))
    plain = parse_body(CompletionRequest, json.dumps({"model": "base", "prompt": long}).encode())
    with pytest.raises(ContextLengthExceeded) as caught:
        prompts.completion(plain)
    assert caught.value.param == "prompt"
    assert 0 < reading.characters < 100_000


def test_many_characters_in_few_tokens_fit(prompts: Prompts) -> None:
    content = tiny_chat.CALL * 1000
    assert len(content) > 20 * 2048
    prepared = prompts.chat(chat(messages=[{"role": "user", "content": content}]))
    assert 1000 < len(prepared.tokens) < 1100
    assert content in text(prepared.tokens)


def test_no_boundaries_are_sought_in_a_prompt_that_does_not_fit(scripted_base: Base) -> None:
    reading = Reading(scripted_base.tokenizer)
    base = replace(scripted_base, tokenizer=reading, states_can_be_cut=False)
    prompts = Prompts(base, default_max_tokens=100, timeout_s=5.0)
    content = "y " * 3000
    assert prompts.chat(chat(messages=[{"role": "user", "content": content}])).boundaries == ()
    assert reading.characters < 1.5 * len(content)


def test_sampling(scripted_base: Base, prompts: Prompts) -> None:
    assert jobs(prompts, chat(), 5)[0].sampling.temperature == 0.0
    seeded = jobs(prompts, chat(seed=7, temperature=1.0, top_k=-1), 5, count=3)
    assert [job.sampling.seed for job in seeded] == [7, 8, 9]
    assert seeded[0].sampling.top_k == 0
    with pytest.raises(InvalidRequest, match="400"):
        jobs(prompts, chat(logit_bias={"400": 1}), 5)
    recommended = Prompts(
        replace(scripted_base, defaults={"temperature": 0.6, "top_k": 20.0}), default_max_tokens=9, timeout_s=1.0
    )
    assert jobs(recommended, chat(), 5)[0].sampling.temperature == 0.6
    assert jobs(recommended, chat(), 5)[0].sampling.top_k == 20
    assert jobs(recommended, chat(temperature=0), 5)[0].sampling.temperature == 0.0


def test_completions(prompts: Prompts) -> None:
    def prepare(prompt: Any) -> list[Any]:
        raw = json.dumps({"model": "base", "prompt": prompt}).encode()
        return prompts.completion(parse_body(CompletionRequest, raw))

    assert text(prepare("héllo")[0].tokens) == "héllo"
    assert [item.tokens for item in prepare([[1, 2], [3]])] == [(1, 2), (3,)]
    assert prepare("x")[0].text_state == "raw"
    for bad in ([384], [-1]):
        with pytest.raises(InvalidRequest, match="not in"):
            prepare(bad)
