"""The HTTP surface of a specialist: routes, OpenAPI document, errors in one envelope."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from mlx_router import __version__
from mlx_router.errors import RouterError
from mlx_router.protocol.chunks import model_entry, model_list
from mlx_router.protocol.envelope import error_body, status_body
from mlx_router.protocol.openapi import error_responses, request_body, with_schemas
from mlx_router.protocol.requests import (
    Body,
    ChatRequest,
    CompletionRequest,
    LoadAdapterRequest,
    PinAdapterRequest,
    UnloadAdapterRequest,
    parse_body,
)
from mlx_router.specialist.answers import CompletionResponse
from mlx_router.specialist.metrics import CONTENT_TYPE
from mlx_router.specialist.security import check_admin, check_client
from mlx_router.specialist.service import Specialist
from mlx_router.specialist.wire import Edge, client_of, read_body

BODIES = (ChatRequest, CompletionRequest, LoadAdapterRequest, UnloadAdapterRequest, PinAdapterRequest)
ADMIN_BODY_BYTES = 2**16
B = TypeVar("B", bound=Body)


def make_app(specialist: Specialist) -> Edge:
    """The ASGI application of a specialist that somebody else starts and stops."""
    app = FastAPI(
        title="mlx-router specialist",
        version=__version__,
        docs_url=None,  # their pages come from a CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_status(app, specialist)
    _add_completions(app, specialist)
    _add_admin(app, specialist)
    app.add_exception_handler(RouterError, _router_error)
    app.add_exception_handler(HTTPException, _http_error)
    describe = app.openapi
    app.openapi = lambda: with_schemas(describe(), BODIES)  # type: ignore[method-assign]
    security = specialist.config.security
    check = partial(
        check_client,
        api_keys=specialist.api_keys,
        admin_token=security.admin_token,
        bind=specialist.settings.host,
    )
    return Edge(app, check=lambda client, headers: check(client, headers))


def _add_status(app: FastAPI, specialist: Specialist) -> None:
    @app.get("/health", responses=error_responses(503))
    async def health() -> Response:
        """Alive: 503 when the model thread has died or makes no steps."""
        status, body = specialist.health()
        return JSONResponse(body, status)

    @app.get("/ready", responses=error_responses(503))
    async def ready() -> Response:
        """Whether requests are taken now, and why not."""
        status, body = specialist.ready()
        return JSONResponse(body, status)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(specialist.metrics.page(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The base and the adapters that requests may name."""
        base = specialist.settings.base
        entries = [model_entry("base", created=specialist.created, root=base)]
        for known in specialist.catalog.served():
            entries.append(model_entry(known.name, created=specialist.created, parent="base", root=str(known.path)))
        return model_list(entries)

    @app.get("/v1/adapters")
    async def adapters() -> dict[str, Any]:
        """Every adapter that is known here, with its state, and the bank."""
        return specialist.adapters()


def _add_completions(app: FastAPI, specialist: Specialist) -> None:
    errors = error_responses(400, 404, 409, 413, 429, 503, 504)

    @app.post("/v1/chat/completions", openapi_extra=request_body(ChatRequest), responses=errors)
    async def chat_completions() -> Response:
        """OpenAI's chat API; a stream of server-sent events with `stream: true`."""
        return CompletionResponse(specialist, chat=True)

    @app.post("/v1/completions", openapi_extra=request_body(CompletionRequest), responses=errors)
    async def completions() -> Response:
        """OpenAI's older API: plain prompts."""
        return CompletionResponse(specialist, chat=False)


def _add_admin(app: FastAPI, specialist: Specialist) -> None:
    errors = error_responses(400, 401, 403, 404, 409, 413, 415, 503, 507)

    @app.post("/v1/load_lora_adapter", openapi_extra=request_body(LoadAdapterRequest), responses=errors)
    async def load_lora_adapter(request: Request) -> dict[str, Any]:
        """Load an adapter, or with `load_inplace` replace its weights while requests run."""
        body = await _admin_body(specialist, request, LoadAdapterRequest)
        return await specialist.load_adapter(body.lora_name, body.lora_path, replace=body.load_inplace)

    @app.post("/v1/unload_lora_adapter", openapi_extra=request_body(UnloadAdapterRequest), responses=errors)
    async def unload_lora_adapter(request: Request) -> dict[str, Any]:
        """Take no more requests for an adapter; running ones end as they began."""
        body = await _admin_body(specialist, request, UnloadAdapterRequest)
        return await specialist.unload_adapter(body.lora_name)

    @app.post("/v1/pin_lora_adapter", openapi_extra=request_body(PinAdapterRequest), responses=errors)
    async def pin_lora_adapter(request: Request) -> dict[str, Any]:
        """Keep an adapter resident, or let it be evicted again."""
        body = await _admin_body(specialist, request, PinAdapterRequest)
        return await specialist.pin_adapter(body.lora_name, body.pinned)


async def _admin_body(specialist: Specialist, request: Request, model: type[B]) -> B:
    """Check the caller, then the body. JSON only: a browser asks first before it sends that to another site."""
    security = specialist.config.security
    check_admin(client_of(request.scope), request.headers, admin_token=security.admin_token)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send application/json")
    return parse_body(model, await read_body(request.scope, request.receive, ADMIN_BODY_BYTES))


async def _router_error(request: Request, error: Exception) -> Response:
    status, headers, body = error_body(error)
    return JSONResponse(body, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors of HTTP itself: an unknown path, a wrong method."""
    if not isinstance(error, HTTPException):
        raise error
    messages = {
        404: f"there is no {request.url.path[:200]} here",
        405: f"{request.method} is not possible on {request.url.path[:200]}",
    }
    headers: Mapping[str, str] | None = error.headers
    return JSONResponse(
        status_body(error.status_code, messages.get(error.status_code, error.detail)), error.status_code, headers
    )
