"""Bodies of our own routes, and the OpenAPI document with the routes that never reach FastAPI."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import Field, model_validator

from mlx_router.protocol.openapi import error_responses, request_body, with_schemas
from mlx_router.protocol.requests import (
    Body,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    LoadAdapterRequest,
    PinAdapterRequest,
    UnloadAdapterRequest,
)

EMBEDDING_MODELS = frozenset({"all-MiniLM-L6-v2", "minilm", "embeddings"})

Specialist = Annotated[str, Field(min_length=1, max_length=128)]


class RouteRequest(Body):
    """Body of POST /v1/route: a prompt or a conversation."""

    prompt: Annotated[str, Field(max_length=1_000_000)] | None = None
    messages: list[dict[str, Any]] | None = None
    top: Annotated[int, Field(ge=1, le=1000)] = 5

    @model_validator(mode="after")
    def _one_of_them(self) -> RouteRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages is needed")
        return self


class LoadRequest(LoadAdapterRequest):
    """As the specialist takes it; `specialist` says which, where nothing else does."""

    specialist: Specialist | None = None


class UnloadRequest(UnloadAdapterRequest):
    """As the specialist takes it; `specialist` says which, where nothing else does."""

    specialist: Specialist | None = None


class PinRequest(PinAdapterRequest):
    """As the specialist takes it; `specialist` says which, where nothing else does."""

    specialist: Specialist | None = None


class ActivateRequest(Body):
    """Body of POST /v1/router/activate."""

    version: Annotated[str, Field(pattern=r"^v\d{4,9}$")]


_MODELS = (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    RouteRequest,
    LoadRequest,
    UnloadRequest,
    PinRequest,
    ActivateRequest,
)
_COMPLETION_ERRORS = (400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 431, 500, 502, 503, 504, 507)


def install(app: FastAPI) -> None:
    """Let /openapi.json show the hot routes too."""
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            made["paths"] |= {
                "/v1/chat/completions": {"post": _completion("chat", "Answer a conversation.", ChatRequest)},
                "/v1/completions": {"post": _completion("complete", "Continue a text.", CompletionRequest)},
            }
            document.update(with_schemas(made, _MODELS))
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _completion(name: str, summary: str, model: type[Body]) -> dict[str, Any]:
    errors = {str(status): response for status, response in error_responses(*_COMPLETION_ERRORS).items()}
    answer = {
        "description": "OpenAI's answer, or its stream of events where `stream` is true; `x-router-*` headers",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
    return {
        "tags": ["openai"],
        "operationId": name,
        "summary": summary,
        **request_body(model),
        "responses": {"200": answer, **errors},
    }
