"""What a job's rounds came to, as flat rows: for `lifl history`, `lifl plot` and `lifl export`.

The rows of the node's database are the one source: they come in pages, the newest first, and of each only its figures
are kept, so that a job of 100,000 rounds is read in the memory of its figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lifl.core.limits import ROUNDS_MAX
from lifl.core.protocol.cli import JobStatus
from lifl_cli.daemon_client import DaemonClient

OF_RECEIPT = (
    "duration_s",
    "last_accepted_to_commit_s",
    "selected",
    "accepted",
    "counted",
    "weight",
    "bytes_in",
    "bytes_out",
    "bytes_between",
    "arena_peak_bytes",
)
"""The figures of a round's receipt that its row has, under the same names."""
SPREAD = ("mean", "min", "max", "std")
"""What is found of a metric over the clients of an evaluation."""
SERVER = "server"
"""What the node's own function found stands beside it by this name, and counts where both are there."""
PAGE_ROUNDS = 1_000
"""Rounds that are asked for at a time, at most; fewer come where these do not fit a frame."""


def lines_before(daemon: DaemonClient, job: str, last: int = ROUNDS_MAX, first: int = PAGE_ROUNDS) -> Iterator[Any]:
    """Yield the last attempts at rounds of a job that are over, the newest first, as in JobStatus.  Raise `Refused`.

    They are asked for in pages, each twice as long as the one before; who wants the newest begins with a few, `first`.
    """
    left, before, size = last, (ROUNDS_MAX + 1, 0), first
    while left > 0:
        wanted = min(left, size)
        page = daemon.ask(JobStatus(job, last=wanted, before=before))
        lines = page["rounds"]
        yield from reversed(lines)
        if page["more"] is None and (len(lines) < wanted or lines[0]["round"] is None):
            return
        before = tuple(page["more"] or (lines[0]["round"], lines[0]["attempt"]))
        left, size = left - len(lines), min(2 * size, PAGE_ROUNDS)


def history(daemon: DaemonClient, job: str, last: int = ROUNDS_MAX) -> list[dict[str, Any]]:
    """Return the rows of the last attempts at rounds of a job, in order.  Raise `Refused`."""
    daemon.ask(JobStatus(job, last=0))  # the job is known, also where no round is asked for
    return [row_of(line) for line in lines_before(daemon, job, last)][::-1]


def row_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one line of JobStatus; what is not known of an attempt is None.

    `metrics` are the clients' weighted means, `evaluation` what was found of its model: of each metric mean, min, max
    and std over the clients that evaluated it, and what the `server` found.
    """
    receipt = line.get("receipt") or {}
    return {
        "round": line["round"],
        "attempt": line["attempt"],
        "status": line["status"],
        "reason": line.get("reason", ""),
        "committed_unix_s": line.get("committed_unix_s"),
        **{name: receipt.get(name) for name in OF_RECEIPT},
        "cpu_s": sum(receipt["cpu_s"].values()) if receipt.get("cpu_s") else None,
        "metrics": line.get("metrics") or {},
        "evaluation": evaluation_of(line),
        "clients": receipt.get("clients") or {},
    }


def evaluation_of(line: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return of each metric that was evaluated mean, min, max and std, and what the `server` found.

    Nothing where the round was not evaluated.
    """
    told = line.get("evaluation") or {}
    found = {
        name: {which: figures[which] for which in SPREAD if which in figures}
        for name, figures in told.get("metrics", {}).items()
    }
    for name, value in (told.get("server") or {}).get("metrics", {}).items():
        found.setdefault(name, {})[SERVER] = value
    return found


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return all that a row has to be drawn, or told to a tracker, by name.

    A metric goes by its own name, what an evaluation found by ``evaluation.NAME``, the spread over its clients by
    ``evaluation.NAME.std`` (also min, max), and what the round cost by ``round.duration_s`` and so on.
    """
    found = {str(name): float(value) for name, value in row["metrics"].items()} | evaluated(row)
    for name in (*OF_RECEIPT, "cpu_s"):
        if row[name] is not None:
            found[f"round.{name}"] = float(row[name])
    return found


def evaluated(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what an evaluation of the row's round found, by name.

    ``evaluation.NAME`` is what counts for `checkpoint.keep` and `job.stop`: what the server found, else the clients'
    mean, which is ``evaluation.NAME.mean`` where both are there.
    """
    found: dict[str, float] = {}
    for name, figures in row["evaluation"].items():
        counts = SERVER if SERVER in figures else "mean"
        for which, value in figures.items():
            found[f"evaluation.{name}" if which == counts else f"evaluation.{name}.{which}"] = float(value)
    return found


def columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the flat columns of rows: those of each row first, then the metrics of all, in order."""
    metrics: dict[str, None] = {}
    for row in rows:
        metrics |= dict.fromkeys(f"metrics.{name}" for name in sorted(row["metrics"]))
        for name, figures in sorted(row["evaluation"].items()):
            metrics |= dict.fromkeys(f"evaluation.{name}.{which}" for which in figures)
    return ["round", "attempt", "status", "reason", "committed_unix_s", *OF_RECEIPT, "cpu_s", *metrics]


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row, or a client's line, by its flat columns."""
    found = {name: value for name, value in row.items() if name not in ("metrics", "evaluation", "clients")}
    found |= {f"metrics.{name}": value for name, value in row["metrics"].items()}
    for name, figures in row.get("evaluation", {}).items():
        found |= {f"evaluation.{name}.{which}": value for which, value in figures.items()}
    return found
