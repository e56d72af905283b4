"""What the server offers, for programs (OpenAPI 3.1) and, from the same, for people."""

from __future__ import annotations

import json
import re
from typing import Any

from triscale import __version__
from triscale.page import Section, code, page, paragraph, table
from triscale.serve.settings import Settings

_MEANINGS = {
    "400": "The request is malformed: multipart, JSON or base64.",
    "401": "The token is missing or wrong.",
    "408": "The body didn't come in time.",
    "413": "Too many bytes or pixels.",
    "415": "This Content-Type isn't understood.",
    "422": "Well-formed, but a picture can't be read, or there are none or too many, or an option "
    "is unknown.",
    "500": "A mistake in the server.",
    "503": "The queue is full, the network is being loaded, or the server is shutting down.",
    "504": "The result didn't come in time.",
}
_NUMBER = {"type": "number"}
_TEXT = {"type": "string"}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


_DETECTION = _object(
    label={**_TEXT, "description": "name of the class"},
    score={**_NUMBER, "minimum": 0, "maximum": 1},
    box={
        "type": "array",
        "items": _NUMBER,
        "minItems": 4,
        "maxItems": 4,
        "description": "left, top, right, bottom in pixels of the upright picture",
    },
)
_IMAGE = _object(
    name={"type": ["string", "null"], "description": "of the file, in a form"},
    width={"type": "integer", "minimum": 1},
    height={"type": "integer", "minimum": 1},
    detections={
        "type": "array",
        "items": {"$ref": "#/components/schemas/Detection"},
        "description": "best first",
    },
)
_RESULT = _object(
    images={
        "type": "array",
        "items": {"$ref": "#/components/schemas/Image"},
        "description": "one for each picture, in their order",
    },
    seconds={**_NUMBER, "minimum": 0, "description": "from the first byte to the result"},
)
_MODEL = _object(
    name=_TEXT,
    classes={"type": "array", "items": _TEXT},
    colours={
        "type": "array",
        "items": {"type": "string", "pattern": "^#[0-9a-f]{6}$"},
        "description": "of the classes, as drawings have them",
    },
    score_threshold={**_NUMBER, "description": "where the query names none"},
)
_EXAMPLE = {
    "images": [
        {
            "name": "dog.jpg",
            "width": 768,
            "height": 576,
            "detections": [
                {"label": "dog", "score": 0.810533, "box": [122.9, 222.5, 325.1, 531.4]}
            ],
        }
    ],
    "seconds": 0.061,
}


def describe(settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of a server with these settings."""
    binary = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
    form = {
        "type": "object",
        "required": ["image"],
        "properties": {
            "image": {
                "type": "array",
                "items": binary,
                "minItems": 1,
                "maxItems": settings.queue,
                "description": "files; the field's name doesn't matter",
            }
        },
    }
    in_json = _object(
        images={
            "type": "array",
            "items": {"type": "string", "contentEncoding": "base64"},
            "minItems": 1,
            "maxItems": settings.queue,
        }
    )
    kinds = [f"image/{kind}" for kind in ("jpeg", "png", "bmp", "webp", "tiff")]
    media = {kind: {"schema": binary} for kind in (*kinds, "application/octet-stream")}
    detect: dict[str, Any] = {
        "operationId": "detect",
        "summary": "Find the objects in one or many pictures",
        "description": (
            f"JPEG, PNG, BMP, WebP or TIFF of at most {settings.max_pixels:,} pixels; at most "
            f"{settings.max_bytes:,} bytes and {settings.queue} pictures in a request. One picture "
            "that can't be read fails the whole request."
        ),
        "parameters": [
            {
                "name": "score",
                "in": "query",
                "description": f"the least score told; {settings.score:g} if it isn't given",
                "schema": {"type": "number", "minimum": 0, "maximum": 1},
            },
            {
                "name": "labels",
                "in": "query",
                "description": "names of the classes that are told, with commas; all if not given",
                "schema": {"type": "array", "items": _TEXT},
                "style": "form",
                "explode": False,
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                **media,
                "multipart/form-data": {"schema": form},
                "application/json": {"schema": in_json},
            },
        },
        "responses": {
            "200": _answer("The detections of each picture.", "Result", example=_EXAMPLE),
            **_errors("400", "408", "413", "415", "422", "500", "503", "504"),
        },
    }
    model: dict[str, Any] = {
        "operationId": "model",
        "summary": "The network's name and classes",
        "responses": {"200": _answer("What is served.", "Model"), **_errors("503")},
    }
    health = {
        "operationId": "health",
        "summary": "Whether requests are taken",
        "description": "503 while the network is being loaded and while the server shuts down.",
        "responses": {"200": _answer("They are.", "Health"), **_errors("503")},
    }
    metrics: dict[str, Any] = {
        "operationId": "metrics",
        "summary": "Figures for Prometheus",
        "responses": {
            "200": {"description": "Prometheus's text format.", "content": {"text/plain": {}}}
        },
    }
    schemes: dict[str, Any] = {}
    if settings.token is not None:
        schemes = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        for operation in (detect, model, metrics):
            operation["security"] = [{"token": []}]
            operation["responses"] = {**operation["responses"], **_errors("401")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "triscale serve",
            "version": __version__,
            "summary": "An object detector behind HTTP",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/detect": {"post": detect},
            "/model": {"get": model},
            "/healthz": {"get": health},
            "/metrics": {"get": metrics},
        },
        "components": {
            "schemas": {
                "Result": _RESULT,
                "Image": _IMAGE,
                "Detection": _DETECTION,
                "Model": _MODEL,
                "Health": _object(status=_TEXT),
                "Error": _object(error={**_TEXT, "description": "a sentence"}),
            },
            **schemes,
        },
    }


def document_page(description: dict[str, Any]) -> str:
    """The same as one HTML page."""
    token = " -H 'Authorization: Bearer TOKEN'" if _secured(description) else ""
    sections: list[Section] = []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            body = paragraph(operation.get("description", ""))
            if path == "/detect":
                body += code(_examples(token))
            if parameters := operation.get("parameters"):
                rows = [(p["name"], p["schema"]["type"], p["description"]) for p in parameters]
                body += table(("in the query", "kind", "meaning"), rows, sortable=False)
            rows = [(status, r["description"]) for status, r in operation["responses"].items()]
            body += table(("status", "when"), rows, sortable=False)
            if path == "/detect":
                body += paragraph("An answer:") + code(_indented(_EXAMPLE))
            title = f"{method.upper()} {path}"
            sections.append(Section(title, body, note=operation["summary"]))
    schemas = description["components"]["schemas"]
    rows = [
        (name, key, " or ".join(_listed(value["type"])), value.get("description", ""))
        for name, schema in schemas.items()
        for key, value in schema["properties"].items()
    ]
    fields = table(("object", "field", "type", "meaning"), rows, sortable=False)
    sections.append(Section("Fields", fields, note="Errors are always an Error."))
    lead = f"triscale {description['info']['version']}. For programs: /openapi.json. To try: /"
    return page(description["info"]["title"], lead=lead, sections=sections)


def _examples(token: str) -> str:
    at = "http://127.0.0.1:8000/detect"
    return (
        f"curl{token} -H 'Content-Type: image/jpeg' --data-binary @dog.jpg {at}\n"
        f"curl{token} -F image=@dog.jpg -F image=@cat.png '{at}?score=0.5&labels=dog,cat'\n"
        f"""echo "{{\\"images\\": [\\"$(base64 -w0 dog.jpg)\\"]}}" |\n"""
        f"  curl{token} -H 'Content-Type: application/json' --data-binary @- {at}"
    )


def _indented(value: Any) -> str:
    """JSON with a line per member, and lists of numbers in one."""
    text = json.dumps(value, indent=2)
    return re.sub(r"\[[-\d.,\s]+\]", lambda found: " ".join(found[0].split()), text)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _secured(description: dict[str, Any]) -> bool:
    return "securitySchemes" in description["components"]


def _answer(text: str, schema: str, *, example: Any = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    if example is not None:
        content["example"] = example
    return {"description": text, "content": {"application/json": content}}


def _errors(*statuses: str) -> dict[str, Any]:
    return {status: _answer(_MEANINGS[status], "Error") for status in statuses}
