"""What happened in a round, and when: spans out of its receipt, for trace files and for OpenTelemetry.

Times are seconds since the round was open for updates, by the clock of the coordinator; those of a task by the clock of
its node, since its branch was opened there, so they are early by as long as that order took.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lifl.core.errors import Refused

ROUND, UPDATES = "round", "updates"
"""The groups of spans beside those of nodes."""
OF_TASK = ("address", "parent", "branch", "number", "parent_number", "updates", "inputs", "attempt", "cpu_s")
"""What is told of a task."""


class Span(NamedTuple):
    """One of them: `group` is what it belongs to (the round, the updates, or a node), `row` the line that it is on."""

    name: str
    group: str
    row: str
    begin_s: float
    end_s: float
    facts: dict[str, Any]


def round_line(lines: Sequence[Mapping[str, Any]], job: str, number: int, attempt: int | None) -> Mapping[str, Any]:
    """Return the line of an attempt at a round (None: the last one), of the lines that JobStatus has of the round.

    Raise `Refused` when there is none.
    """
    found = [line for line in lines if attempt in (None, line["attempt"])]
    if not found:
        which = f"attempt {attempt} at round {number}" if attempt else f"round {number}"
        there = ", ".join(str(line["attempt"]) for line in lines)
        text = f"job {job} has no {which} that is over" + (f"; attempts: {there}" if there else "")
        raise Refused("unknown-round", "round", f"{text}; `lifl history {job}` lists those there are")
    return found[-1]


def spans_of(line: Mapping[str, Any]) -> list[Span]:
    """Return the spans of a round, of a line of JobStatus.  Raise `Refused` when its receipt tells no times."""
    receipt = line.get("receipt") or {}
    timeline = receipt.get("timeline")
    if timeline is None:
        why = "its receipt is not kept (history.keep), an earlier version ran it, or it was never open for updates"
        text = f"round {line['round']} has no times: {why}"
        raise Refused("no-times", "round", text)
    return [*_phases(line, receipt, timeline), *_updates(timeline), *_tasks(receipt, timeline["ended_s"])]


def _phases(line: Mapping[str, Any], receipt: Mapping[str, Any], timeline: Mapping[str, Any]) -> Iterator[Span]:
    updates, end_s = timeline["updates"], timeline["ended_s"]
    facts = {name: line[name] for name in ("round", "attempt", "status", "reason") if line.get(name)}
    facts |= {name: receipt[name] for name in ("selected", "accepted", "counted", "bytes_in") if name in receipt}
    began_s = min(0.0, timeline["began_s"])
    yield Span(f"round {line['round']}", ROUND, "round", began_s, end_s, facts | dict(line.get("metrics") or {}))
    last_s = max((accepted for _granted, accepted in updates.values()), default=0.0)
    at = began_s
    for name, until_s in (
        ("selection", 0.0),
        ("collecting", last_s),
        ("finish", timeline["sealed_s"]),
        ("checkpoint", timeline["saved_s"]),
        ("commit", end_s if line["status"] == "committed" else None),
    ):
        if until_s is not None:
            yield Span(name, ROUND, "phases", at, max(at, until_s), {})
            at = max(at, until_s)


def _updates(timeline: Mapping[str, Any]) -> Iterator[Span]:
    for client, (granted_s, accepted_s) in timeline["updates"].items():
        yield Span(client, UPDATES, "", granted_s, max(granted_s, accepted_s), {})


def _tasks(receipt: Mapping[str, Any], end_s: float) -> Iterator[Span]:
    for task in receipt.get("tree", ()):
        if "began_s" not in task:
            continue  # no worker has had it
        facts = {name: task[name] for name in OF_TASK if task.get(name) is not None}
        until_s = max(task["began_s"], task.get("ended_s", end_s))
        node, worker = f"node {task.get('node', '')}", f"worker {task.get('pid') or '?'}"
        yield Span(f"{task['role']} {task['number']}", node, worker, task["began_s"], until_s, facts)


class _Lanes:
    """The lines of one row: each span goes to the first one that is free when it begins."""

    def __init__(self) -> None:
        self._busy: list[tuple[float, int]] = []
        self._free: list[int] = []
        self._count = 0

    def take(self, begin_s: float, end_s: float) -> int:
        """Return the lane of a span; those before it began no later."""
        while self._busy and self._busy[0][0] <= begin_s:
            heapq.heappush(self._free, heapq.heappop(self._busy)[1])
        if not self._free:
            self._free.append(self._count)
            self._count += 1
        lane = heapq.heappop(self._free)
        heapq.heappush(self._busy, (end_s, lane))
        return lane


def in_rows(spans: Iterable[Span]) -> list[Span]:
    """Return the spans in the order of their beginnings, with rows in which each is over before the next one begins.

    What is at the same time on one row goes to more rows of its name: ``worker 71 (2)``.
    """
    rows: dict[tuple[str, str], _Lanes] = {}
    found = []
    for span in sorted(spans, key=lambda span: (span.begin_s, -span.end_s)):
        lane = rows.setdefault((span.group, span.row), _Lanes()).take(span.begin_s, span.end_s)
        label = f"{span.row} ({lane + 1})" if lane and span.row else span.row or str(lane + 1)
        found.append(span._replace(row=label))
    return found


def trace_events(job: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a round in the trace-event format, which Perfetto and chrome://tracing open.  Raise `Refused`.

    Source: "Trace Event Format", Chromium: complete events (X) and names of processes and threads (M), in microseconds.
    """
    spans = in_rows(spans_of(line))
    begin_s = min(span.begin_s for span in spans)
    groups: dict[str, int] = {}
    rows: dict[tuple[str, str], int] = {}
    events: list[dict[str, Any]] = []
    for span in spans:
        group = groups.setdefault(span.group, len(groups) + 1)
        row = rows.setdefault((span.group, span.row), len(rows) + 1)
        events.append(
            {
                "ph": "X",
                "name": span.name,
                "cat": span.group.partition(" ")[0],
                "pid": group,
                "tid": row,
                "ts": round((span.begin_s - begin_s) * 1e6, 3),
                "dur": round((span.end_s - span.begin_s) * 1e6, 3),
                "args": span.facts,
            }
        )
    named = [{"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}} for name, pid in groups.items()]
    named += [
        {"ph": "M", "name": "thread_name", "pid": groups[group], "tid": tid, "args": {"name": row}}
        for (group, row), tid in rows.items()
    ]
    about = {"job": job, "round": line["round"], "attempt": line["attempt"]}
    return {"traceEvents": named + events, "displayTimeUnit": "ms", "otherData": about}
