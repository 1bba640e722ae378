"""The log as lines of JSON: an object for each record, whatever is in it."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from lifl.node.log_file import JsonLines


def told(message: str, *arguments: object, **more: Any) -> dict[str, Any]:
    record = logging.LogRecord("lifl.daemon", logging.WARNING, "f", 1, message, arguments, more.pop("exc_info", None))
    vars(record).update(more)
    line = JsonLines().format(record)
    assert "\n" not in line
    assert line.encode()
    found: dict[str, Any] = json.loads(line)
    assert found.pop("at").endswith("Z")
    assert (found.pop("level"), found.pop("logger")) == ("warning", "lifl.daemon")
    return found


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "worker.ended worker=%d pid=7 exit code 3",
            {"event": "worker.ended", "worker": "1", "pid": "7", "text": "exit code 3"},
        ),
        ("gateway.ended without a word", {"event": "gateway.ended", "text": "without a word"}),
        ("daemon.ready {'node': 'x=1 y=2'}", {"event": "daemon.ready", "text": "{'node': 'x=1 y=2'}"}),
        ("a.b level=9 c=1", {"event": "a.b", "text": "level=9 c=1"}),
        ("a.b file=\udcff.toml größe", {"event": "a.b", "file": "\udcff.toml", "text": "größe"}),
        ("What is no event\nof two lines", {"text": "What is no event\nof two lines"}),
    ],
)
def test_a_line_has_its_event_its_facts_and_the_rest(message: str, expected: dict[str, str]) -> None:
    assert told(message, *([1] if "%d" in message else [])) == expected


def test_the_facts_of_a_jobs_event_keep_their_kinds() -> None:
    facts = {"job": "j", "round": 3, "metrics": {"größe": 0.5}, "level": "mine"}
    found = told("%s job=%s %s", "round.committed", "j", "...", facts=facts)
    assert found == {"event": "round.committed", "job": "j", "round": 3, "metrics": {"größe": 0.5}}


def test_an_exception_is_in_its_line() -> None:
    try:
        raise ValueError("no\nnumber")
    except ValueError:
        found = told("cli.failed JobStatus", exc_info=sys.exc_info())
    assert found["event"] == "cli.failed"
    assert found["exception"].startswith("Traceback") and "ValueError: no\nnumber" in found["exception"]
