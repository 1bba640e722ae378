"""The description of what can be asked by HTTP, in OpenAPI 3.1: made of `operations.py`."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from lifl.node.http.operations import OPEN, OPERATIONS, SAFETENSORS, Operation
from lifl.node.http.wire import JSON

_TEXT, _WHOLE, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
_FIGURES = {"type": "object", "additionalProperties": _NUMBER}


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


SCHEMAS = {
    "Problem": _object(
        "code field text",
        code={"type": "string", "description": "As in the native protocol."},
        field={"type": "string", "description": "What it is about."},
        text={"type": "string", "description": "What happened, and what to do."},
        received_bytes=_WHOLE,
    ),
    "Selection": _object(
        "job round deadline_s options tensors model update",
        job=_TEXT,
        round=_WHOLE,
        deadline_s={"type": "number", "description": "The seconds that are left."},
        options={"type": "object", "description": "What the job's config hands to trainers."},
        tensors={
            "type": "array",
            "items": _object("name dtype shape", name=_TEXT, dtype=_TEXT, shape={"type": "array", "items": _WHOLE}),
        },
        model={"type": "string", "description": "The path of the model."},
        update={"type": "string", "description": "The path that the update is to be put to."},
    ),
    "Update": _object(
        "round state received_bytes",
        round=_WHOLE,
        state={"type": "string", "enum": ["unknown", "receiving", "accepted", "committed", "over"]},
        received_bytes={"type": "integer", "description": "Of an update that is `receiving`."},
        total_bytes=_WHOLE,
        counted={"type": "boolean", "description": "Of a `committed` round: the update is in it."},
        code=_TEXT,
        text=_TEXT,
    ),
    "Health": _object("state", state={"type": "string", "enum": ["alive", "ready"]}),
    "Status": _object(
        "node version uptime_s started_unix_s warnings paused leads arena gateway redirector cpu_s workers nodes jobs "
        "clients",
        node=_TEXT,
        version=_TEXT,
        uptime_s=_NUMBER,
        started_unix_s=_NUMBER,
        warnings=_WHOLE,
        paused={"type": "integer", "description": "1: nothing can be decided now."},
        leads={"type": "integer", "description": "1: this node coordinates."},
        redirector={"type": "object"},
        nodes={"type": "object", "description": "Nodes of the cluster by state.", "additionalProperties": _WHOLE},
        arena=_FIGURES,
        gateway=_FIGURES,
        cpu_s=_FIGURES,
        workers=_FIGURES,
        clients={"type": "integer", "description": "Those that take part by HTTP."},
        jobs={"type": "array", "items": {"type": "object"}},
    ),
}
OTHERS = {
    400: "It cannot be read.",
    401: "It comes without a credential that is known.",
    403: "Its credential does not allow that.",
    404: "There is no such thing.",
    408: "It came too slowly.",
    429: "There is no place now.",
    500: "A fault of the node.",
    503: "Not now: ask again after Retry-After.",
}
"""What any request may be answered."""


def _content(kind: str) -> dict[str, Any]:
    if not kind:
        return {}
    if kind == "file":
        return {"content": {SAFETENSORS: {}}}
    if kind == "text":
        return {"content": {"text/plain": {"schema": _TEXT}}}
    schema = {"type": "object"} if kind == "object" else {"$ref": f"#/components/schemas/{kind}"}
    return {"content": {JSON: {"schema": schema}}}


def _described(operation: Operation) -> dict[str, Any]:
    answers = dict(operation.answers)
    for status, text in OTHERS.items():
        answers.setdefault(status, (text, "Problem"))
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": list(operation.parameters),
        "responses": {
            str(status): {"description": text, **_content(kind)} for status, (text, kind) in sorted(answers.items())
        },
    }
    if operation.body:
        found["requestBody"] = {"required": True, "content": {SAFETENSORS: {}}}
    if operation.name in OPEN:
        found["security"] = []
    return found


@cache
def described() -> bytes:
    """Return the description, as JSON."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "LIFL",
            "version": "1",
            "description": "Take part in federated learning by HTTP: docs/http.md tells how, and what the codes mean.",
        },
        "security": [{"bearer": []}, {"ticket": []}, {"bearer": [], "ticket": []}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "ticket": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "LIFL-Ticket",
                    "description": "The line of a ticket, for its fold alone: beside who somebody is, or in its place.",
                },
            },
        },
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n"
