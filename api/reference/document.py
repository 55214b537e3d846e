"""FastAPI's document, completed: titles, examples, errors, headers, keys."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.reference.routes import ERRORS, HEADERS, PARAMETERS, ROUTES, SSE, Doc

Json = dict[str, Any]
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string", "description": "what is wrong, and what to do"},
                "type": {"type": "string", "description": "the family, as OpenAI names it"},
                "code": {"type": ["string", "integer", "null"], "description": "stable, for programs"},
                "param": {"type": ["string", "null"], "description": "the field that is wrong"},
            },
        }
    },
}
_KEY: Json = {"type": "http", "scheme": "bearer", "description": "one of the deployment's keys"}
_TOKEN: Json = {
    "type": "apiKey",
    "in": "query",
    "name": "token",
    "description": "the token of a create: opens that response alone; also as cookie relay_token",
}


def complete(app: FastAPI) -> None:
    """Give the app its complete document, made when it is first asked for."""

    def document() -> Json:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            app.openapi_schema = _completed(made)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _completed(made: Json) -> Json:
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # ours have one body for all
        schemas.pop(name, None)
    schemas["Error"] = _ERROR
    components["securitySchemes"] = {"key": _KEY, "token": _TOKEN}
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            if doc := ROUTES.get((method, path)):
                _describe(operation, doc)
    return made


def _describe(operation: Json, doc: Doc) -> None:
    operation["summary"] = doc.title
    operation["responses"] = {
        **{str(status): _answer(status, content, doc) for status, content in doc.answers.items()},
        **{str(status): _refusal(status) for status in sorted(doc.refuses)},
    }
    operation["security"] = [] if doc.is_open else [{"key": []}, {"token": []}]
    for parameter in operation.get("parameters", ()):
        parameter.setdefault("description", PARAMETERS.get(parameter["name"].lower(), ""))
    if doc.request is not None:
        operation["requestBody"]["content"]["application/json"]["example"] = doc.request


def _answer(status: int, content: Json, doc: Doc) -> Json:
    made: Json = {"description": HTTPStatus(status).phrase}
    if status == HTTPStatus.NO_CONTENT:
        return made | {"description": "Nothing to say"}
    made["content"] = {
        kind: {"schema": {"type": "object" if isinstance(example, dict) else "string"}, "example": example}
        for kind, example in content.items()
    }
    if SSE in content:
        made["content"][SSE]["schema"]["description"] = "server-sent events"
    if doc.headers:
        made["headers"] = {
            name: {"description": HEADERS[name], "schema": {"type": "string"}} for name in doc.headers
        }
    return made


def _refusal(status: int) -> Json:
    kind, code, message, param = ERRORS[status]
    error = {"message": message, "type": kind, "code": code, "param": param}
    made: Json = {
        "description": HTTPStatus(status).phrase,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Error"},
                "example": {"error": error},
            }
        },
    }
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        made["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return made
