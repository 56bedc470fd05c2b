"""A specialist as its users see it: the official openai client against a real process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests import tiny_chat
from tests.specialist_process import SpecialistProcess, specialist_process
from tests.tiny_chat import ANSWER
from tests.tiny_models import save_model

HI: list[Any] = [{"role": "user", "content": "Wie ist das Wetter in Zürich? 🙂"}]
WEATHER: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("specialist")
    tiny_chat.save_scripted(root / "base")
    for name, first in {"caller": "<tool_call>", "thinker": "<think>", "endless": "loop", "broken": "#1"}.items():
        tiny_chat.save_starter(root / name, first)
    return root


@pytest.fixture(scope="module")
def specialist(root: Path) -> Iterator[SpecialistProcess]:
    with specialist_process(root / "home", root / "base", top=f'adapter_roots = ["{root}"]', slots=4) as running:
        for name in ("caller", "thinker", "endless"):
            running.load(name, root / name)
        yield running


@pytest.fixture(scope="module")
def client(specialist: SpecialistProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=specialist.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="base", messages=HI)
    choice = answer.choices[0]
    assert choice.message.content == ANSWER
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.id.startswith("chatcmpl-")


def test_headers_name_the_adapter(client: openai.OpenAI, specialist: SpecialistProcess) -> None:
    plain = client.chat.completions.with_raw_response.create(
        model="base", messages=HI, extra_headers={"x-request-id": "my-own-id"}
    )
    assert plain.headers["x-adapter"] == "base"
    assert plain.headers["x-adapter-digest"] == "base"
    assert plain.headers["x-request-id"] == "my-own-id"
    adapted = client.chat.completions.with_raw_response.create(model="thinker", messages=HI)
    digests = {item["id"]: item["digest"] for item in specialist.get("/v1/adapters")[1]["data"]}
    assert adapted.headers["x-adapter"] == "thinker"
    assert adapted.headers["x-adapter-digest"] == digests["thinker"]


def test_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="base", messages=HI, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == ANSWER
    assert len([piece for piece in pieces if piece]) == 7  # é and 🙂 are several tokens and one piece each
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_counts_cached_tokens(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "a prompt of its own, to be computed once"}]
    first, second = (client.chat.completions.create(model="base", messages=messages).usage for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.prompt_tokens_details is not None
    assert second.prompt_tokens_details is not None
    assert second.prompt_tokens_details.cached_tokens == second.prompt_tokens - 1  # one is always computed
    assert second.prompt_tokens == first.prompt_tokens


def test_tool_call(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="caller", messages=HI, tools=WEATHER)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    call: Any = choice.message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Zürich"}
    follow_up: list[Any] = [
        *HI,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "18 °C"},
    ]
    assert client.chat.completions.create(model="base", messages=follow_up).choices[0].message.content == ANSWER


def test_tool_call_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="caller", messages=HI, tools=WEATHER, stream=True)
    chunks = [chunk.choices[0] for chunk in stream]
    calls: list[Any] = [call for choice in chunks for call in choice.delta.tool_calls or []]
    assert [(call.index, call.function.name) for call in calls] == [(0, "get_weather")]
    assert json.loads(calls[0].function.arguments) == {"city": "Zürich"}
    assert chunks[-1].finish_reason == "tool_calls"


def test_tool_text_without_tools_is_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="caller", messages=HI)
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content == f"<tool_call>{tiny_chat.CALL}</tool_call>"


def test_reasoning_is_split_off(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="thinker", messages=HI)
    message: Any = answer.choices[0].message
    assert message.content == "ok"
    assert message.reasoning_content == " mmh"
    details: Any = answer.usage
    assert details.completion_tokens_details.reasoning_tokens > 0
    stream = client.chat.completions.create(model="thinker", messages=HI, stream=True)
    deltas: list[Any] = [chunk.choices[0].delta for chunk in stream]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == " mmh"
    assert "".join(delta.content or "" for delta in deltas) == "ok"


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="base", messages=HI, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert b"".join(bytes(token.bytes or []) for token in logprobs.content).decode() == ANSWER
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)  # greedy: the best is the one taken
        assert token.logprob <= 0
    stream = client.chat.completions.create(model="base", messages=HI, logprobs=True, stream=True)
    streamed = [
        token for chunk in stream if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content or []
    ]
    assert [token.token for token in streamed] == [token.token for token in logprobs.content]


def test_stop_string_over_token_boundaries(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="base", messages=HI, stop=["NDin", "never"])
    assert answer.choices[0].message.content == ANSWER.partition("NDin")[0]
    assert answer.choices[0].finish_reason == "stop"


def test_max_tokens_never_cuts_a_character(client: openai.OpenAI) -> None:
    for limit in range(1, 12):
        answer = client.chat.completions.create(model="base", messages=HI, max_completion_tokens=limit)
        content = answer.choices[0].message.content or ""
        assert ANSWER.startswith(content)
        assert "\ufffd" not in content
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == limit


def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="base", messages=HI, n=3, temperature=2.0, seed=5, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    again = client.chat.completions.create(
        model="base", messages=HI, n=3, temperature=2.0, seed=5, max_tokens=8, stream=True
    )
    texts = ["", "", ""]
    for chunk in again:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


def prompt_tokens(specialist: SpecialistProcess) -> int:
    """Those that the model has computed since its start."""
    page = dict(line.rsplit(" ", 1) for line in specialist.get("/metrics")[1].splitlines() if line[0] != "#")
    names = (f"mlx_router_specialist_{name}_tokens_total" for name in ("prompt", "cached"))
    prompt, cached = (round(float(page[name])) for name in names)
    return prompt - cached


def ask(client: openai.OpenAI, model: str, text: str, count: int, *, stream: bool) -> tuple[list[str], Any]:
    """What the choices say, and the usage."""
    messages: list[Any] = [{"role": "user", "content": text}]
    fields: dict[str, Any] = {"model": model, "messages": messages, "n": count, "max_tokens": 12}
    if not stream:
        answer = client.chat.completions.create(**fields)
        return [choice.message.content or "" for choice in answer.choices], answer.usage
    texts, usage = [""] * count, None
    for chunk in client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts, usage


@pytest.fixture(scope="module", params=["scripted", "recurrent"])
def limited(request: pytest.FixtureRequest, root: Path) -> Iterator[SpecialistProcess]:
    """Few rows and short chunks; the second base has recurrent states, and answers that depend on the whole prompt."""
    base = root / "base"
    if request.param == "recurrent":
        base = root / "recurrent"
        save_model(base, "qwen3_5_moe", vocab_size=tiny_chat.HIDDEN)
        tiny_chat.save_tokenizer(base)
    with specialist_process(root / f"home-{request.param}", base, max_batch=4, prefill_step=32) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_prompt_of_several_choices_is_computed_once(limited: SpecialistProcess, stream: bool) -> None:
    """Also of more choices than there are places in the batch."""
    url = limited.url + "/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        for count in (1, 3, 6):
            text = f"{count} {stream} " + "and a prompt of more than one chunk " * 5
            before = prompt_tokens(limited)
            texts, usage = ask(client, "base", text, count, stream=stream)
            own = usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens
            assert usage.prompt_tokens > 64
            assert prompt_tokens(limited) - before == own + count - 1  # the last token once a choice
            again, _ = ask(client, "base", text, 1, stream=stream)
            assert texts == again * count


def test_a_seed_reproduces_in_any_company(client: openai.OpenAI) -> None:
    def sample(_: int) -> str | None:
        answer = client.chat.completions.create(
            model="base", messages=HI, temperature=2.0, top_p=0.95, seed=11, max_tokens=12
        )
        return answer.choices[0].message.content

    alone = sample(0)
    with ThreadPoolExecutor(9) as pool:
        others = [
            pool.submit(client.chat.completions.create, model=name, messages=HI, temperature=1.5, max_tokens=12)
            for name in ("base", "endless", "thinker")
        ]
        together = list(pool.map(sample, range(6)))
        for other in others:
            other.result()
    assert set(together) == {alone}


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="base", prompt=["#0", "loop"], max_tokens=3, logprobs=2)
    assert [choice.text for choice in answer.choices] == ["Yes indeed", "firstloopfirst"]
    assert answer.choices[1].finish_reason == "length"
    assert answer.choices[1].logprobs is not None
    assert answer.choices[1].logprobs.tokens == ["first", "loop", "first"]
    assert answer.choices[1].logprobs.text_offset == [0, 5, 9]
    tokens = [tiny_chat.token("loop")]
    assert client.completions.create(model="base", prompt=tokens, max_tokens=1).choices[0].text == "first"
    echo = client.completions.create(model="base", prompt="#0", max_tokens=1, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in echo) == "#0Yes"


def test_models(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"base", "caller", "thinker", "endless"}
    caller: Any = models["caller"]
    assert caller.parent == "base"
    assert caller.root.endswith("/caller")


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=HI)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(model="base", messages=HI, temperature=3.0)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="base", messages=HI, max_tokens=5000)
    assert long.value.code == "context_length_exceeded"
    assert "2048" in str(long.value)
    assert "5000" in str(long.value)
    with pytest.raises(openai.BadRequestError) as image:
        client.chat.completions.create(
            model="base",
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
        )
    assert "image_url" in str(image.value)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="base", messages=HI, response_format={"type": "json_object"})
    with pytest.raises(openai.BadRequestError) as biased:
        client.chat.completions.create(model="base", messages=HI, logit_bias={"400": 1})
    assert biased.value.param == "logit_bias"


def test_a_swap_while_streams_run(
    client: openai.OpenAI, specialist: SpecialistProcess, root: Path, tmp_path: Path
) -> None:
    """Running answers end on the version that they began with, later ones begin on the new one."""
    specialist.load("swapped", root / "endless")
    running = client.chat.completions.with_raw_response.create(
        model="swapped", messages=HI, stream=True, max_tokens=600
    )
    old = running.headers["x-adapter-digest"]
    stream = iter(running.parse())
    for _ in range(3):
        next(stream)
    reply = specialist.load("swapped", root / "thinker", replace=True)
    assert reply["status"] == "replaced"
    assert reply["previous_digest"] == old
    assert reply["digest"] != old
    assert {"read", "check", "bank", "total"} == set(reply["ms"])
    later = client.chat.completions.with_raw_response.create(model="swapped", messages=HI)
    assert later.headers["x-adapter-digest"] == reply["digest"]
    assert later.parse().choices[0].message.content == "ok"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert set(text.replace("first", "").split("loop")) == {""}
    assert len(text) > 600
    specialist.post("/v1/unload_lora_adapter", {"lora_name": "swapped"})


def test_parallel_clients_share_the_batch(client: openai.OpenAI, specialist: SpecialistProcess) -> None:
    start = threading.Barrier(12)

    def ask(index: int) -> tuple[str, str | None]:
        name = ("base", "caller", "thinker", "endless")[index % 4]
        start.wait()
        answer = client.chat.completions.create(model=name, messages=HI, max_tokens=40)
        return name, answer.choices[0].message.content

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    expected = {"base": ANSWER, "caller": f"<tool_call>{tiny_chat.CALL}</tool_call>", "thinker": "ok"}
    for name, content in answers:
        assert content == expected.get(name, content)
        assert content
    assert specialist.get("/ready")[1]["queue"] == {"waiting": 0, "running": 0, "limit": 256}


@pytest.mark.anyio
async def test_the_async_client(specialist: SpecialistProcess) -> None:
    async with openai.AsyncOpenAI(base_url=specialist.url + "/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model="base", messages=HI, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == ANSWER


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
