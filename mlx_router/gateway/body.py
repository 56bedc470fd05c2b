"""A request body as bytes: decoded once to look into it, sent on with nothing changed but the model's name."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from mlx_router.errors import InvalidRequest

# In valid JSON a bare `"model"` followed by a colon is a key, at whatever depth; inside a string its quotes
# would be escaped. A pattern that begins with plain letters is searched for a hundred times faster than one that
# begins by looking back.
_MODEL = re.compile(rb'"model"(?<!\\"model")\s*:\s*("(?:[^"\\]|\\.)*"|null)')
_ESCAPED_LETTER = b"\\u006"  # a key could be written with it


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def decode(raw: bytes) -> dict[str, Any]:
    """The body as an object. Raises InvalidRequest for anything else, NaN and lone surrogates included."""
    try:
        body = _DECODER.decode(raw.decode("utf-8"))
        if b"\\ud" in raw or b"\\uD" in raw:
            json.dumps(body, ensure_ascii=False).encode()
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8 JSON"
        raise InvalidRequest(f"the body is not valid JSON: {reason}") from None
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    return body


def model_of(body: dict[str, Any]) -> str | None:
    """The `model` field. Raises InvalidRequest where it is neither a string nor absent."""
    model = body.get("model")
    if model is None:
        return None
    if not isinstance(model, str) or not model or len(model) > 256:
        raise InvalidRequest("model must be a string of 1 to 256 characters", param="model")
    return model


def with_model(raw: bytes, body: dict[str, Any], model: str) -> bytes:
    """`raw` with another model name; every other byte stays, unless `model` cannot be told apart in the bytes."""
    name = _quoted(model)
    if "model" not in body:
        start = raw.index(b"{") + 1
        return raw[:start] + b'"model":' + name + (b"," if body else b"") + raw[start:]
    found = _MODEL.search(raw)
    if found is not None and _ESCAPED_LETTER not in raw and _MODEL.search(raw, found.end()) is None:
        old = body["model"]
        if found[1] == (b"null" if old is None else _quoted(old)):
            return raw[: found.start(1)] + name + raw[found.end(1) :]
    return json.dumps({**body, "model": model}, ensure_ascii=True).encode()


@lru_cache(maxsize=1024)
def _quoted(model: str) -> bytes:
    return json.dumps(model).encode()
