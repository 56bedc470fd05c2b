from __future__ import annotations

import json

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mlx_router.errors import ContextLengthExceeded, Overloaded, Unauthorized
from mlx_router.protocol import sse
from mlx_router.protocol.chunks import (
    Answer,
    TokenLogprob,
    Usage,
    chat_logprobs,
    completion_logprobs,
    model_entry,
    model_list,
    tool_call,
)
from mlx_router.protocol.envelope import encode, error_body, status_body

ANSWER = Answer(id="chatcmpl-1", created=1, model="m", fingerprint="f")
TOKENS = [
    TokenLogprob("é", "é".encode(), -0.5, (("é", "é".encode(), -0.5), ("e", b"e", -1.0))),
    TokenLogprob("\ufffd", b"\xf0\x9f", -2.0),
]


def test_a_whole_answer_is_what_the_client_expects() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [tool_call("f", "{}")]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": chat_logprobs(TOKENS)}
    body = ANSWER.whole([choice], Usage(prompt=3, completion=2, cached=1, reasoning=1))
    parsed = ChatCompletion.model_validate(json.loads(encode(body)), strict=True)
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == 5
    assert parsed.usage.prompt_tokens_details is not None
    assert parsed.usage.prompt_tokens_details.cached_tokens == 1


def test_chunks_are_what_the_client_expects() -> None:
    writer = ANSWER.chunks(include_usage=True)
    events = writer.choice(0, {"role": "assistant", "content": ""}) + writer.choice(
        0, {"content": 'a "quoted"\nline 🙂'}, logprobs=chat_logprobs(TOKENS)
    )
    events += writer.choice(0, {}, finish_reason="stop") + writer.usage(Usage(prompt=1, completion=2)) + sse.DONE
    data = sse.SSEReader().feed(events)
    assert data.pop() == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate(json.loads(item)) for item in data]
    assert chunks[1].choices[0].delta.content == 'a "quoted"\nline 🙂'
    assert chunks[2].choices[0].finish_reason == "stop"
    assert chunks[3].usage is not None
    assert chunks[3].choices == []


def test_completions() -> None:
    answer = Answer(id="cmpl-1", created=1, model="m", fingerprint="f", chat=False)
    logprobs = completion_logprobs(TOKENS, offset=4)
    assert logprobs["text_offset"] == [4, 5]
    assert logprobs["top_logprobs"][0] == {"é": -0.5, "e": -1.0}
    choice = {"index": 0, "text": "é", "finish_reason": "stop", "logprobs": logprobs}
    Completion.model_validate(answer.whole([choice], Usage(prompt=1, completion=2)))
    event = json.loads(sse.SSEReader().feed(answer.chunks(include_usage=False).choice(1, {"text": "x"}))[0])
    assert event["object"] == "text_completion"
    assert event["choices"][0] == {"index": 1, "text": "x", "logprobs": None, "finish_reason": None}
    assert "usage" not in event


def test_errors() -> None:
    status, headers, body = error_body(Overloaded("full", retry_after_s=0.2))
    assert (status, headers) == (429, {"retry-after": "1"})
    assert body["error"]["type"] == "rate_limit_error"
    status, _, body = error_body(ContextLengthExceeded("too long", param="messages"))
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert body["error"]["param"] == "messages"
    assert error_body(Unauthorized("who?"))[1] == {"www-authenticate": "Bearer"}
    status, _, body = error_body(ValueError("a secret path"))
    assert status == 500
    assert "secret" not in json.dumps(body)
    assert status_body(404, "no")["error"]["code"] == "not_found"


def test_models() -> None:
    body = model_list([model_entry("base", created=1), model_entry("a", created=1, parent="base", root="/x")])
    assert [item["id"] for item in body["data"]] == ["base", "a"]
    assert body["data"][1]["root"] == "/x"
