"""What can be asked by HTTP: the one table by which requests are handed on, and of which the description is made."""

from __future__ import annotations

from typing import Any, NamedTuple

from lifl.core.fields import NAME_RULE
from lifl.core.limits import COUNT_MAX, HTTP_WAIT_S_MAX, NAME_CHARS_MAX, REASON_BYTES_MAX, WEIGHT_MAX, WEIGHT_MIN

SAFETENSORS = "application/octet-stream"
_NAME = {"type": "string", "minLength": 1, "maxLength": NAME_CHARS_MAX, "pattern": "^[A-Za-z0-9][A-Za-z0-9._:-]*$"}
_ROUND = {"type": "integer", "minimum": 0, "maximum": COUNT_MAX}
_OF_CLIENT = "/v1/jobs/{job}/clients/{client}"
_OF_ROUND = _OF_CLIENT + "/rounds/{round}"
WAIT_S_DEFAULT = 30.0


class Operation(NamedTuple):
    """One of them: `name` is its handler in `api.Api`; `answers` are by status what it means, and its schema."""

    name: str
    method: str
    path: str
    summary: str
    answers: dict[int, tuple[str, str]]
    parameters: tuple[dict[str, Any], ...] = ()
    body: bool = False


def _parameter(name: str, place: str, text: str, schema: dict[str, Any], required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": place, "description": text, "schema": schema, "required": required}


_JOB = _parameter("job", "path", "The job's name.", _NAME, required=True)
_CLIENT = _parameter("client", "path", f"The client's name: {NAME_RULE}.", _NAME, required=True)
_NUMBER = _parameter("round", "path", "The round's number.", _ROUND, required=True)
_WAIT = _parameter(
    "wait_s", "query", "How long to wait, in seconds.", {"type": "number", "minimum": 0, "maximum": HTTP_WAIT_S_MAX}
)
_WEIGHT = _parameter(
    "weight",
    "query",
    "What the update counts, such as the number of examples.",
    {"type": "number", "minimum": WEIGHT_MIN, "maximum": WEIGHT_MAX},
    required=True,
)
_METRICS = {
    "name": "LIFL-Metrics",
    "in": "header",
    "description": 'Metrics, as {"loss": 0.3}.',
    "content": {"application/json": {"schema": {"type": "object", "additionalProperties": {"type": "number"}}}},
}
_REASON = _parameter("reason", "query", "Why.", {"type": "string", "maxLength": REASON_BYTES_MAX // 4})
_TEXT = {"type": "string"}
_RANGE = _parameter("Range", "header", "Bytes of the file, as bytes=1000-.", _TEXT)
_IF_RANGE = _parameter("If-Range", "header", "The ETag of the file that they are to be of.", _TEXT)
_NONE_MATCH = _parameter("If-None-Match", "header", "ETags of files that are here already.", _TEXT)
_CONTENT_RANGE = _parameter(
    "Content-Range",
    "header",
    "Which bytes of the file the body has, as bytes 1000-4999/5000.",
    _TEXT,
)

OPERATIONS = (
    Operation("get_description", "GET", "/openapi.json", "This description.", {200: ("OpenAPI 3.1.", "object")}),
    Operation(
        "get_roots",
        "GET",
        "/roots.pem",
        "The roots of the cluster's authority: to be believed by nobody who does not compare them with a bearer token.",
        {200: ("PEM.", "text"), 404: ("This node has no certificates.", "Problem")},
    ),
    Operation(
        "get_status",
        "GET",
        "/v1/status",
        "What the node does, for its own account, readers and operators.",
        {200: ("Its arena, doors and jobs.", "Status")},
    ),
    Operation(
        "get_health",
        "GET",
        "/healthz",
        "Whether the node lives, for those who start it again.",
        {200: ("It does.", "Health"), 503: ("It does not answer.", "Problem")},
    ),
    Operation(
        "get_readiness",
        "GET",
        "/readyz",
        "Whether the node takes updates now, for those who send clients to it.",
        {200: ("It does.", "Health"), 503: ("It does not, as `lifl top` and its log tell.", "Problem")},
    ),
    Operation("get_metrics", "GET", "/metrics", "The same for Prometheus.", {200: ("Its text format.", "text")}),
    Operation(
        "get_selection",
        "GET",
        _OF_CLIENT + "/selection",
        "Take part in the job, and wait until the client is selected for a round whose update is not there.",
        {200: ("It is.", "Selection"), 204: ("Not in this time: ask again.", ""), 410: ("The job is over.", "Problem")},
        (_JOB, _CLIENT, _WAIT),
    ),
    Operation(
        "get_ticket",
        "GET",
        "/v1/ticket",
        "Take part in a program's fold by a ticket (LIFL-Ticket), and wait until the fold is open that it is for.",
        {
            200: ("It is.", "Selection"),
            204: ("Not in this time: ask again.", ""),
            410: ("The fold, or its session, is over.", "Problem"),
            422: ("It comes with no ticket.", "Problem"),
        },
        (_WAIT,),
    ),
    Operation(
        "get_model",
        "GET",
        _OF_ROUND + "/model",
        "The model that a round starts from, as a safetensors file.",
        {
            200: ("All of it.", "file"),
            206: ("The bytes that were asked for.", "file"),
            304: ("It is one of those that are there already.", ""),
            410: ("The round is over.", "Problem"),
            416: ("It has no such bytes.", "Problem"),
        },
        (_JOB, _CLIENT, _NUMBER, _RANGE, _IF_RANGE, _NONE_MATCH),
    ),
    Operation(
        "put_update",
        "PUT",
        _OF_ROUND + "/update",
        "The client's update, as a safetensors file with the model's tensors, in any order. The same update once more "
        "gets the first answer. After a cut its rest may come, with Content-Range, from `received_bytes` on.",
        {
            200: ("Accepted: it will be counted once, or expire with a reason.", "Update"),
            202: ("These bytes are there, others are still to come.", "Update"),
            409: ("It is not the client's turn.", "Problem"),
            410: ("The round, or the job, is over.", "Problem"),
            411: ("Its length was not said.", "Problem"),
            413: ("It is too large.", "Problem"),
            416: ("Other bytes are to come: from `received_bytes` on.", "Problem"),
            422: ("It is no update of this model.", "Problem"),
        },
        (_JOB, _CLIENT, _NUMBER, _WEIGHT, _METRICS, _CONTENT_RANGE),
        body=True,
    ),
    Operation(
        "get_update",
        "GET",
        _OF_ROUND + "/update",
        "What became of the client's update; with wait_s, when that is settled.",
        {200: ("This.", "Update"), 410: ("The job is over.", "Problem")},
        (_JOB, _CLIENT, _NUMBER, _WAIT),
    ),
    Operation(
        "decline_round",
        "POST",
        _OF_ROUND + "/decline",
        "The client takes part in the job and not in this round: another is to be selected.",
        {204: ("It is told.", ""), 410: ("The job is over.", "Problem")},
        (_JOB, _CLIENT, _NUMBER, _REASON),
    ),
    Operation(
        "leave_job",
        "DELETE",
        _OF_CLIENT,
        "The client takes part no longer.",
        {204: ("It does not.", "")},
        (_JOB, _CLIENT),
    ),
)
OPEN = ("get_description", "get_roots", "get_health", "get_readiness")
"""What takes no credential."""


def matched(segments: list[str]) -> tuple[dict[str, Operation], dict[str, str]]:
    """Return the operations of a path, by method, and the path's arguments."""
    for path in dict.fromkeys(operation.path for operation in OPERATIONS):
        names = path.split("/")[1:]
        pairs = list(zip(names, segments, strict=False))
        if len(names) == len(segments) and all(name == found or name.startswith("{") for name, found in pairs):
            arguments = {name[1:-1]: found for name, found in pairs if name.startswith("{")}
            return {each.method: each for each in OPERATIONS if each.path == path}, arguments
    return {}, {}
