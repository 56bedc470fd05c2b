"""Bodies in an OpenAPI document for routes that read the raw request themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

REF = "#/components/schemas/{model}"
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route whose handler parses `model` from the raw body."""
    schema = {"$ref": REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: each status answers with the envelope."""
    content = {"application/json": {"schema": {"$ref": REF.format(model="ErrorEnvelope")}}}
    return {status: {"description": "error envelope", "content": content} for status in statuses}


def with_schemas(document: Mapping[str, Any], models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """The document with the schemas that `request_body` and `error_responses` refer to."""
    schemas: dict[str, Any] = {"ErrorEnvelope": ERROR_SCHEMA}
    for model in models:
        schema = model.model_json_schema(ref_template=REF)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    components = {**document.get("components", {})}
    components["schemas"] = {**components.get("schemas", {}), **schemas}
    return {**document, "components": components}
