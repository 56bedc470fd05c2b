"""Bodies go on as they came, but for the model's name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_router.errors import InvalidRequest
from mlx_router.gateway.body import decode, model_of, with_model


@pytest.mark.parametrize(
    ("raw", "sent"),
    [
        (b'{"model":"auto","n":1}', b'{"model":"base","n":1}'),
        (b'{"n":1 ,\n "model" : "auto" }', b'{"n":1 ,\n "model" : "base" }'),
        (b'{"n":1.50}', b'{"model":"base","n":1.50}'),
        (b"{}", b'{"model":"base"}'),
        (b'{"model":null}', b'{"model":"base"}'),
        (b'{"x":{"model":null}}', b'{"model":"base","x":{"model":null}}'),
        (b'{"m":"\\"model\\": \\"a\\"","model":"auto"}', b'{"m":"\\"model\\": \\"a\\"","model":"base"}'),
    ],
)
def test_bytes_stay(raw: bytes, sent: bytes) -> None:
    assert with_model(raw, decode(raw), "base") == sent


@pytest.mark.parametrize(
    "raw",
    [
        b'{"tools":[{"model":"auto"}],"model":"auto"}',
        b'{"model":"a","model":"auto"}',
        b'{"mod\\u0065l":"auto","x":{"model":"other"}}',
        b'{"model":"a\\/b"}',
        b'{"mod\\u0065l":"auto","x":{"model":"auto"}}',
    ],
)
def test_where_the_name_is_ambiguous_the_body_is_written_anew(raw: bytes) -> None:
    body = decode(raw)
    assert json.loads(with_model(raw, body, "base")) == {**body, "model": "base"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["model", '"model":"x"', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("model"), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(), JSON, max_size=4), st.sampled_from([None, "auto", 'a"b', "é"]), st.booleans())
def test_only_the_model_changes(fields: dict[str, Any], model: str | None, ascii_only: bool) -> None:
    body = fields if model is None else {**fields, "model": model}
    raw = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        decoded = decode(raw)
    except InvalidRequest:
        return
    assert json.loads(with_model(raw, decoded, "base")) == {**body, "model": "base"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'"x"',
        b"{",
        b'{"a":NaN}',
        b'{"a":"\\ud800"}',
        b"\xff\xfe{}",
        b'{"a":' * 200_000,
        b'{"a":' + b"1" * 5000 + b"}",
        '{"a":1}'.encode("utf-16"),
    ],
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode(raw)


@pytest.mark.parametrize("model", [1, "", "x" * 300, ["a"], {}])
def test_model_is_a_name(model: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        model_of({"model": model})
    assert caught.value.param == "model"
