"""The routes that are not hot, and the OpenAPI document of all of them."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from mlx_router import __version__
from mlx_router.errors import InvalidRequest, ModelNotFound, RouterError
from mlx_router.gateway import admin, documents, policy
from mlx_router.gateway import status as state
from mlx_router.gateway.choose import choose_for
from mlx_router.gateway.edge import App, Edge, read_body
from mlx_router.gateway.policy import Plan
from mlx_router.gateway.routing import RouterUnavailable
from mlx_router.gateway.service import Gateway
from mlx_router.gateway.wire import ClientGone
from mlx_router.gateway.wish import Wish, clip, wish_of
from mlx_router.head.decision import UNAVAILABLE, Target
from mlx_router.protocol import envelope
from mlx_router.protocol.openapi import error_responses, request_body
from mlx_router.protocol.requests import (
    B,
    EmbeddingRequest,
    parse_body,
)

WEB = Path(__file__).parent / "web"
DIM = 384
MAX_INPUTS = 256  # of one /v1/embeddings body
MAX_INPUT_CHARS = 100_000
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def build_app(gateway: Gateway) -> App:
    """The whole ASGI application."""
    app = FastAPI(
        title="mlx-router gateway",
        version=__version__,
        description="One OpenAI endpoint that sends each prompt to the right specialist.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    _errors(app)
    _health(app, gateway)
    _router(app, gateway)
    _openai(app, gateway)
    _administration(app, gateway)
    pages = _page(app)
    documents.install(app)
    edge: App = Edge(gateway, app, is_static=pages)
    origins = gateway.setup.config.gateway.cors_origins
    if origins:
        edge = CORSMiddleware(
            edge,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    return edge


def _errors(app: FastAPI) -> None:
    async def ours(request: Request, error: Exception) -> Response:
        status, headers, body = envelope.error_body(error)
        return JSONResponse(body, status_code=status, headers=headers)

    async def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        text = {404: "there is nothing at this path", 405: "this method is not possible here"}.get(
            status, "bad request"
        )
        return JSONResponse(envelope.status_body(status, text), status_code=status, headers=headers)

    async def invalid(request: Request, error: Exception) -> Response:
        problems = cast(RequestValidationError, error).errors()
        named = [(str(item["loc"][-1]), item["msg"]) for item in problems]
        text = "; ".join(f"{name}: {message}" for name, message in named)
        return await ours(request, InvalidRequest(text, param=named[0][0]))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=400)

    app.add_exception_handler(RouterError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientGone, gone)
    app.add_exception_handler(Exception, ours)


def _health(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/health", tags=["operation"])
    async def health() -> dict[str, Any]:
        """Alive."""
        return {"status": "ok", "uptime_s": round(time.time() - gateway.started_at, 1)}

    @app.get("/ready", tags=["operation"], responses={503: {"description": "not ready, with reasons"}})
    async def ready() -> Response:
        """Able to route and answer, part by part."""
        able, body = state.readiness(gateway)
        return JSONResponse(body, status_code=200 if able else 503)

    @app.get("/metrics", tags=["operation"], response_class=Response, responses=error_responses(401))
    async def metrics() -> Response:
        """Prometheus."""
        return Response(gateway.metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.get("/v1/status", tags=["operation"], responses=error_responses(401))
    async def status() -> dict[str, Any]:
        """Specialists, adapters, processes, the router and its versions."""
        return state.status(gateway)

    @app.get("/v1/decisions", tags=["operation"], responses=error_responses(400, 401))
    async def decisions(limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> dict[str, Any]:
        """The last decisions, newest first."""
        return {"object": "list", "data": gateway.log.recent(limit)}


def _router(app: FastAPI, gateway: Gateway) -> None:
    @app.post(
        "/v1/route",
        tags=["router"],
        openapi_extra=request_body(documents.RouteRequest),
        responses=error_responses(400, 401, 403, 413, 429, 503),
    )
    async def route(request: Request) -> dict[str, Any]:
        """Where a prompt or a conversation would go."""
        body = await _parse(request, gateway, documents.RouteRequest)
        wish = wish_of(body.messages or []) if body.prompt is None else Wish(clip(body.prompt))
        setup = gateway.setup
        choice = await choose_for(gateway, setup, wish, None)
        if not choice.plan.decision.router:
            raise RouterUnavailable("the router is not available")
        decision = choice.plan.decision
        decision = replace(decision, scores=decision.scores[: body.top])
        target, reason = _target(gateway, choice.plan)
        if setup.routes.pools and (target is None or reason):
            decision = replace(decision, reason=UNAVAILABLE)
        answer = replace(decision, target=target).to_json()
        if reason:
            answer["detail"] = reason
        return answer


def _target(gateway: Gateway, plan: Plan) -> tuple[Target | None, str]:
    """Who would answer now, and why not the first choice."""
    reasons = [plan.note] if plan.note else []
    for step in plan.steps:
        endpoint, refusals = gateway.setup.fleet.pick(step)
        if endpoint is not None:
            return Target(endpoint.pool, step.adapter), "; ".join(reasons)
        reasons += [refusal for refusal in refusals if refusal not in reasons]
    return None, "; ".join(reasons)


def _openai(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models", tags=["openai"], responses=error_responses(401))
    async def models() -> dict[str, Any]:
        """What `model` may be."""
        return {"object": "list", "data": state.models(gateway)}

    @app.get("/v1/models/{name:path}", tags=["openai"], responses=error_responses(401, 404))
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        for item in state.models(gateway):
            if item["id"] == name:
                return item
        raise ModelNotFound(f"the model {name!r} does not exist", param="model")

    @app.post(
        "/v1/embeddings",
        tags=["openai"],
        openapi_extra=request_body(EmbeddingRequest),
        responses=error_responses(400, 401, 403, 404, 413, 429, 503),
    )
    async def embeddings(request: Request) -> dict[str, Any]:
        """The encoder: texts to unit vectors of 384 numbers."""
        body = await _parse(request, gateway, EmbeddingRequest)
        texts = body.texts
        if not 1 <= len(texts) <= MAX_INPUTS:
            raise InvalidRequest(f"input has {len(texts)} texts, 1 to {MAX_INPUTS} are possible", param="input")
        if any(not text for text in texts):
            raise InvalidRequest("a text of input is empty", param="input")
        if any(len(text) > MAX_INPUT_CHARS for text in texts):
            raise InvalidRequest(f"a text of input has more than {MAX_INPUT_CHARS} characters", param="input")
        if body.dimensions not in (None, DIM):
            raise InvalidRequest(f"dimensions must be {DIM}", param="dimensions")
        if not policy.automatic(body.model) and body.model.rpartition("/")[2] not in documents.EMBEDDING_MODELS:
            raise ModelNotFound(f"the model {body.model!r} does not exist", param="model")
        vectors = np.ascontiguousarray(await gateway.router.encode(texts), dtype="<f4")
        tokens = sum(len(text) // policy.CHARS_PER_TOKEN + 1 for text in texts)
        return {
            "object": "list",
            "model": state.EMBEDDING_MODEL,
            "data": [
                {"object": "embedding", "index": index, "embedding": _embedding(row, body.encoding_format)}
                for index, row in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


def _embedding(row: Any, encoding: str | None) -> list[float] | str:
    return base64.b64encode(row.tobytes()).decode() if encoding == "base64" else row.tolist()


def _administration(app: FastAPI, gateway: Gateway) -> None:
    def allowed(request: Request) -> None:
        peer = request.client.host if request.client is not None else None
        gateway.setup.guard.check_admin(request.scope["headers"], peer)

    async def act(request: Request, action: str, model: type[B]) -> Response:
        allowed(request)
        body = await _parse(request, gateway, model)
        payload = body.model_dump(exclude_none=True)
        code, answer = await admin.adapter_action(gateway, action, payload)
        return JSONResponse(answer, status_code=code)

    failures = error_responses(400, 401, 403, 404, 409, 413, 503, 504, 507)

    @app.get("/v1/adapters", tags=["admin"], responses=error_responses(401))
    async def adapters() -> dict[str, Any]:
        """The adapters of every specialist, as last seen."""
        found: list[dict[str, Any]] = []
        for item in gateway.setup.fleet:
            if item.kind == "specialist":
                listed = state.endpoint_status(gateway, item)["adapters"]
                found += [{**adapter, "specialist": item.pool} for adapter in listed]
        return {"object": "list", "data": found}

    @app.post(
        "/v1/load_lora_adapter", tags=["admin"], openapi_extra=request_body(documents.LoadRequest), responses=failures
    )
    async def load(request: Request) -> Response:
        """Load an adapter, or replace its weights, on its specialist."""
        return await act(request, "load_lora_adapter", documents.LoadRequest)

    @app.post(
        "/v1/unload_lora_adapter",
        tags=["admin"],
        openapi_extra=request_body(documents.UnloadRequest),
        responses=failures,
    )
    async def unload(request: Request) -> Response:
        """Take an adapter out of service; its domains are answered by the base."""
        return await act(request, "unload_lora_adapter", documents.UnloadRequest)

    @app.post(
        "/v1/pin_lora_adapter", tags=["admin"], openapi_extra=request_body(documents.PinRequest), responses=failures
    )
    async def pin(request: Request) -> Response:
        """Keep an adapter in the bank, or let it go."""
        return await act(request, "pin_lora_adapter", documents.PinRequest)

    @app.post(
        "/v1/router/activate",
        tags=["admin"],
        openapi_extra=request_body(documents.ActivateRequest),
        responses=error_responses(400, 401, 403, 404, 409, 413, 429),
    )
    async def activate(request: Request) -> dict[str, Any]:
        """Serve another router version."""
        allowed(request)
        body = await _parse(request, gateway, documents.ActivateRequest)
        return await admin.activate_version(gateway, body.version)

    @app.post("/v1/router/rollback", tags=["admin"], responses=error_responses(401, 403, 404, 409, 429))
    async def rollback(request: Request) -> dict[str, Any]:
        """Serve the version before the active one."""
        allowed(request)
        return await admin.rollback_version(gateway)


async def _parse(request: Request, gateway: Gateway, model: type[B]) -> B:
    limit = gateway.setup.config.gateway.body_limit_bytes
    raw = await read_body(request.scope["headers"], request.receive, limit)
    return parse_body(model, raw)


def _page(app: FastAPI) -> Callable[[str], bool]:
    """Serve the files of web/ that are there now; the first path is the page itself."""
    root = WEB.resolve()
    files = {f"/{path.relative_to(root).as_posix()}": path for path in root.rglob("*") if path.is_file()}
    files = {name: path for name, path in files.items() if path.suffix not in (".py", ".md") and "/." not in name}
    if "/index.html" in files:
        files["/"] = files["/index.html"]

    def serve(path: Path) -> Callable[[], Any]:
        async def page() -> Response:
            headers = {
                "cache-control": "no-cache",
                "content-security-policy": _CSP,
                "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer",
            }
            return FileResponse(path, headers=headers)

        return page

    for name, path in files.items():
        app.add_api_route(name, serve(path), methods=["GET"], include_in_schema=False)
    return files.__contains__
