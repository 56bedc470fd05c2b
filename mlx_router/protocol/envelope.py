"""OpenAI's error envelope: `{"error": {"message", "type", "param", "code"}}`, made in one place."""

from __future__ import annotations

import json
import math
from typing import Any

from mlx_router.errors import InvalidRequest, RouterError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_type(status: int) -> str:
    """OpenAI's `type` for an HTTP status."""
    return TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def envelope(
    message: str, *, status: int, code: str | None = None, param: str | None = None
) -> dict[str, dict[str, Any]]:
    """The body of an error answer."""
    return {"error": {"message": message, "type": error_type(status), "param": param, "code": code}}


def error_body(error: BaseException) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, extra headers and body for an exception; anything that is not ours becomes a mute 500."""
    if not isinstance(error, RouterError):
        return 500, {}, envelope("internal error", status=500, code="internal_error")
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = envelope(error.message, status=error.status, code=error.code, param=error.param)
    return error.status, headers, body


def status_body(status: int, message: str) -> dict[str, Any]:
    """The envelope for errors of HTTP itself: 404 of a path, 405 of a method, 415 of a content type."""
    codes = {404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}
    code = codes.get(status, InvalidRequest.code if status < 500 else None)
    return envelope(message, status=status, code=code)


def encode(body: dict[str, Any]) -> bytes:
    """JSON as it goes over the wire."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
