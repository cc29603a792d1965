"""The description of the API in OpenAPI 3.1, from the same models that parse its requests.

It says what the parser accepts beyond the models: null at every level, a text where a list of texts may be, fields that
change nothing, and the limits of this server. Rules between fields are in descriptions only: that an image is a valid
file, and that the last message is the user's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from jsfree.config import Serve
from serve.http import schema

Schema = dict[str, Any]
TEMPLATE = "#/components/schemas/{model}"
NULL: Schema = {"type": "null"}
TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer", "minimum": 0}
ERROR_STATUSES = {
    "400": "The request is invalid; `param` names the field.",
    "401": "No valid API key.",
    "403": "The key may not be used for this.",
    "404": "No such path or model.",
    "405": "The path does not support the method.",
    "408": "Not received or not answered in time.",
    "413": "The body is too large.",
    "429": "Too many requests; try again after `Retry-After` seconds.",
    "431": "The headers are too long.",
    "500": "The server failed on this request.",
    "503": "The model does not answer; try again after `Retry-After` seconds.",
}


def document(settings: Serve, models: Sequence[str], *, needs_key: bool) -> Schema:
    """The description of a server.

    Args:
        models: the identifiers of its models.
        needs_key: whether requests must have a key.
    """
    return {
        "openapi": "3.1.0",
        "info": {"title": "jsfree", "version": version("jsfree"), "description": "Captions by the models of a run."},
        "security": [{"key": []}] if needs_key else [],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {**_requests(settings, models), **_responses()},
        },
    }


def _paths() -> Schema:
    chat = _posted("ChatRequest", "ChatCompletion", "Caption an image, or answer a text.")
    compared = _posted("CompareRequest", "Comparison", "Caption an image by several models.")
    model = {**_got("Model", "One model."), "parameters": [_path_parameter("model")]}
    return {
        "/v1/chat/completions": {"post": chat},
        "/v1/compare": {"post": compared},
        "/compare": {"post": {**compared, "deprecated": True}},
        "/v1/models": {"get": _got("ModelList", "All models.")},
        "/v1/models/{model}": {"get": model},
        "/healthz": {"get": _got("Health", "Whether decoding makes progress, and the models' names.")},
        "/health": {"get": {**_got("Health", "Whether decoding makes progress."), "security": []}},
        "/ping": {"get": {**_got("Health", "The same as /health."), "security": []}},
        "/version": {"get": _got("Version", "The version of jsfree.")},
        "/metrics": {"get": _operation("Metrics for Prometheus.", {"text/plain": {"schema": TEXT}})},
        "/openapi.json": {"get": _operation("This description.", {"application/json": {"schema": {"type": "object"}}})},
    }


def _posted(request: str, response: str, summary: str) -> Schema:
    """The description of a path that answers a body with JSON or with events."""
    content = {"application/json": {"schema": _reference(response)}, "text/event-stream": {"schema": TEXT}}
    body = {"required": True, "content": {"application/json": {"schema": _reference(request)}}}
    return {**_operation(summary, content), "requestBody": body}


def _got(response: str, summary: str) -> Schema:
    return _operation(summary, {"application/json": {"schema": _reference(response)}})


def _operation(summary: str, content: Schema) -> Schema:
    errors = {
        status: {"description": text, "content": {"application/json": {"schema": _reference("Error")}}}
        for status, text in ERROR_STATUSES.items()
    }
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": content}, **errors}}


def _path_parameter(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _reference(name: str) -> Schema:
    return {"$ref": TEMPLATE.format(model=name)}


def _requests(settings: Serve, models: Sequence[str]) -> Schema:
    """The schemas of bodies, with this server's limits."""
    found: Schema = {}
    for kind in (schema.ChatRequest, schema.CompareRequest):
        found |= _of_model(kind)
    chat, compare = found["ChatRequest"]["properties"], found["CompareRequest"]["properties"]
    for properties in (chat, compare):
        properties["stop"] = _or_text(properties["stop"], {"minLength": 1, "maxLength": schema.MAX_STOP_CHARS})
        properties["views"]["maximum"] = settings.max_views
        properties |= {name: {"description": "Ignored."} for name in schema.HARMLESS}
        properties |= {name: _unsupported(values) for name, values in schema.UNSUPPORTED.items()}
    chat["model"]["enum"] = list(models)
    chat["n"]["maximum"] = settings.max_choices
    compare["models"]["items"]["enum"] = list(models)
    text = {"minLength": 1, "maxLength": settings.max_prompt_chars}
    compare["prompt"] |= text
    message = found["Message"]["properties"]
    message["content"] = _or_text(message["content"], {"maxLength": settings.max_prompt_chars})
    found["TextPart"]["properties"]["text"]["maxLength"] = settings.max_prompt_chars
    for described in (found["ImageUrl"]["properties"]["url"], compare["image"]):
        described |= _image(settings)
    return {name: _with_nulls(each) for name, each in found.items()}


def _of_model(kind: type[BaseModel]) -> Schema:
    """The schemas of a model of pydantic and of those inside it; optional fields without their null."""
    written = kind.model_json_schema(ref_template=TEMPLATE)
    inner: Schema = written.pop("$defs", {})
    schemas = {kind.__name__: written, **inner}
    for each in schemas.values():
        each["properties"] = {name: _not_null(field) for name, field in each["properties"].items()}
    return schemas


def _not_null(field: Schema) -> Schema:
    """The schema of an optional field without null, which ``_with_nulls`` adds to all fields."""
    given = [option for option in field.get("anyOf", ()) if option != NULL]
    rest = {key: value for key, value in field.items() if key not in ("anyOf", "default", "title")}
    return {**rest, **given[0]} if len(given) == 1 else rest if not given else {**rest, "anyOf": given}


def _with_nulls(described: Schema) -> Schema:
    """An object whose optional fields, and unknown ones, may be null: null means that a field is absent."""
    required = described.get("required", [])
    properties = {
        name: field if name in required or not field.keys() - {"description"} else {"anyOf": [field, NULL]}
        for name, field in described["properties"].items()
    }
    return {**described, "properties": properties, "additionalProperties": NULL}


def _or_text(listed: Schema, limits: Schema) -> Schema:
    """A list, or one text in its place."""
    return {"anyOf": [{**TEXT, **limits}, listed]}


def _unsupported(values: tuple[Any, ...]) -> Schema:
    """A field that is accepted only with values that change nothing."""
    return {"description": "Not supported.", "enum": [*values, None]}


def _image(settings: Serve) -> Schema:
    hosts = ", ".join(settings.allowed_image_hosts)
    remote = f" Also https:// URLs of {hosts}." if hosts else " Other URLs are not fetched."
    size = f"at most {settings.max_image_bytes} bytes and {settings.max_pixels} pixels"
    return {
        "description": f"A data URL of a png, jpeg or webp file of {size}, whose shorter side has at least"
        f" {settings.min_side}: data:image/png;base64,...{remote}",
        "examples": ["data:image/png;base64,iVBORw0KGgo..."],
    }


def _object(properties: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """An object with exactly these fields, except for those that it may lack."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}


def _optional(described: Schema) -> Schema:
    return {"anyOf": [described, NULL]}


def _listed(described: Schema) -> Schema:
    return {"type": "array", "items": described}


def _responses() -> Schema:
    """The schemas of answers."""
    finish = {"enum": ["stop", "length"]}
    usage = _object(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), INTEGER))
    message = _object({"role": {"const": "assistant"}, "content": TEXT, "refusal": NULL})
    logprobs = _optional({"type": "object"})
    choice = _object({"index": INTEGER, "message": message, "finish_reason": finish, "logprobs": logprobs})
    model = _object(
        {
            "id": TEXT,
            "object": {"const": "model"},
            "created": INTEGER,
            "owned_by": TEXT,
            "root": TEXT,
            "parent": _optional(TEXT),
            "max_model_len": _optional(INTEGER),
        }
    )
    error = {"message": TEXT, "type": TEXT, "param": _optional(TEXT), "code": _optional(TEXT)}
    return {
        "Usage": usage,
        "ChatCompletion": _object(
            {
                "id": TEXT,
                "object": {"const": "chat.completion"},
                "created": INTEGER,
                "model": TEXT,
                "choices": _listed(choice),
                "usage": _reference("Usage"),
            }
        ),
        "Comparison": _comparison(finish),
        "Model": model,
        "ModelList": _object({"object": {"const": "list"}, "data": _listed(_reference("Model"))}),
        "Health": _object(
            {"status": {"const": "ok"}, "models": {"type": "object", "additionalProperties": TEXT}}, ("models",)
        ),
        "Version": _object({"version": TEXT}),
        "Error": _object({"error": _object(error)}),
    }


def _comparison(finish: Schema) -> Schema:
    """The schema of a comparison, which has the caption of each model under its role too."""
    score = _optional({"type": "number"})
    caption = _object(
        {
            "model": TEXT,
            "role": TEXT,
            "text": TEXT,
            "finish_reason": finish,
            "tokens": INTEGER,
            "score": score,
            "sentences": _listed(_object({"text": TEXT, "score": score, "unique": {"type": "boolean"}})),
        }
    )
    fields = {
        "object": {"const": "comparison"},
        "created": INTEGER,
        "prompt": TEXT,
        "seed": {"type": "integer"},
        "captions": _listed(caption),
        "usage": _reference("Usage"),
    }
    return {**_object(fields), "additionalProperties": caption}
