"""Looks at what etcd has kept of all that a cluster ever wrote: one leader per term, one commit per round.

    python tests/store_history.py HOST:PORT [NAME]         (--dump FILE keeps what was read)
    python tests/store_history.py --from FILE

It shares nothing with LIFL but the layout of the keys: it reads every change from etcd's first revision on by etcd's
own HTTP door, and unpacks the values itself.  What must hold:

* The leader's key is never changed while it lives, and terms only grow.
* Every row was written in the term that its value names, while that one's key lived.
* A round has one commit at a time; it is made together with the row of its attempt.  Another one may follow only when
  the rounds from there on were set aside in one step.
* The rounds of a job are committed one after the other.
* A row that is committed is not changed any more, but by setting it aside.

etcd must not have compacted what is looked at.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import ssl
import sys
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

WAIT_S = 60.0


class Change(NamedTuple):
    """One change of a key; `value` is None where it was deleted."""

    key: str
    value: bytes | None
    revision: int
    created: int


class History(NamedTuple):
    """What was found: the faults, and the figures of what was looked at."""

    faults: list[str]
    terms: int
    commits: int
    revisions: int


def asked(
    address: str, path: str, body: dict[str, Any], context: ssl.SSLContext | None = None
) -> http.client.HTTPResponse:
    """The answer of etcd's HTTP door; by TLS, if there is a context."""
    host, port = address.rsplit(":", 1)
    connection: http.client.HTTPConnection
    if context is None:
        connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_S)
    else:
        connection = http.client.HTTPSConnection(host, int(port), timeout=WAIT_S, context=context)
    connection.request("POST", path, json.dumps(body))
    return connection.getresponse()


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def changes(address: str, name: str, context: ssl.SSLContext | None = None) -> list[Change]:
    """All changes below a cluster's keys, in their order."""
    root = f"/lifl/{name}/"
    now = json.load(asked(address, "/v3/kv/range", {"key": coded(root)}, context))
    last = int(now["header"]["revision"])
    # A key of our own that changes behind all of that tells where to stop.
    mark = f"{root}history-mark"
    put = json.load(asked(address, "/v3/kv/put", {"key": coded(mark), "value": coded("x")}, context))
    end = int(put["header"]["revision"])
    assert end > last
    request = {"create_request": {"key": coded(root), "range_end": coded(root[:-1] + "0"), "start_revision": "1"}}
    answer = asked(address, "/v3/watch", request, context)
    found: list[Change] = []
    for line in answer:
        result = json.loads(line)["result"]
        assert not result.get("canceled"), f"etcd has not kept all of it: {result}"
        for event in result.get("events", ()):
            kv = event["kv"]
            key = base64.b64decode(kv["key"]).decode()
            value = None if event.get("type") == "DELETE" else base64.b64decode(kv.get("value", ""))
            revision = int(kv["mod_revision"])
            if key == mark:
                if revision == end:
                    return found
                continue
            found.append(Change(key.removeprefix(root), value, revision, int(kv.get("create_revision", 0))))
    raise AssertionError("etcd ended its history before its end")


def unpacked(value: bytes, parts: dict[str, bytes], key: str) -> dict[str, Any]:
    if value[:1] == b"P":
        named = msgpack.unpackb(value[1:])
        prefix = f"parts/{key}/{named['digest'].decode()}/"
        value = b"".join(parts[f"{prefix}{index:06d}"] for index in range(named["parts"]))
    return msgpack.unpackb(zlib.decompress(value[1:]), strict_map_key=False)


class Looker:
    """Goes through the changes, revision by revision."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.leader: tuple[int, bytes] | None = None  # term and value, while its key lives
        self.terms: list[int] = []
        self.parts: dict[str, bytes] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.commits: dict[tuple[str, int], int] = {}  # those that stand, by job and round: the attempt
        self.committed: defaultdict[str, int] = defaultdict(lambda: -1)  # by job: the last that stands
        self.made = 0

    def fault(self, revision: int, text: str) -> None:
        self.faults.append(f"revision {revision}: {text}")

    def look(self, revision: int, group: list[Change]) -> None:
        """All changes of one revision: one transaction's."""
        before = self.leader
        for change in group:
            if change.key == "leader":
                self._leader(change)
        rows: dict[str, dict[str, Any]] = {}
        for change in group:
            if change.key.startswith("parts/") and change.value is not None:
                self.parts[change.key] = change.value
            elif change.value is not None and change.key.split("/")[0] in (
                "jobs",
                "status",
                "rounds",
                "commits",
                "last-job",
            ):
                rows[change.key] = unpacked(change.value, self.parts, change.key)
        for key, row in rows.items():
            if before is None or row.get("term") != before[0]:
                self.fault(revision, f"{key} was written in term {row.get('term')}, and the leader is of {before}")
        self._deleted(revision, group, rows)
        for key, row in rows.items():
            kind, *numbers = key.split("/")
            if kind == "rounds":
                self._round(revision, key, row)
            elif kind == "commits":
                self._commit(revision, numbers[0], int(numbers[1]), row, rows)
        self.rows |= rows

    def _leader(self, change: Change) -> None:
        if change.value is None:
            self.leader = None
            return
        if self.leader is not None:
            self.fault(change.revision, f"the leader's key of term {self.leader[0]} was changed while it lived")
        if change.created != change.revision or (self.terms and change.created <= self.terms[-1]):
            self.fault(change.revision, f"term {change.created} comes after {self.terms[-1:]}")
        self.leader = (change.created, change.value)
        self.terms.append(change.created)

    def _deleted(self, revision: int, group: list[Change], rows: dict[str, dict[str, Any]]) -> None:
        gone = [change.key for change in group if change.value is None]
        aside = {key.rsplit("/", 1)[0] for key, row in rows.items() if row.get("status") == "damaged"}
        over = {key.split("/")[1] for key in gone if key.startswith("status/")}
        for key in gone:
            if not key.startswith("commits/"):
                continue
            _, job, round_ = key.split("/")
            number = int(round_)
            attempt = self.commits.pop((job, number), None)
            if f"rounds/{job}/{round_}" in aside:
                self.committed[job] = min(self.committed[job], number - 1)
            elif job not in over and number > self.committed[job] - 8:
                self.fault(revision, f"the commit of round {number} of job {job} (attempt {attempt}) was taken back")

    def _round(self, revision: int, key: str, row: dict[str, Any]) -> None:
        earlier = self.rows.get(key)
        if earlier is not None and earlier["status"] == "committed" and row["status"] != "damaged":
            self.fault(revision, f"{key} was committed, and is {row['status']}")

    def _commit(self, revision: int, job: str, number: int, row: dict[str, Any], rows: dict[str, Any]) -> None:
        if (job, number) in self.commits:
            self.fault(revision, f"round {number} of job {job} was committed a second time")
        if number != self.committed[job] + 1:
            self.fault(revision, f"round {number} of job {job} was committed after {self.committed[job]}")
        attempt = rows.get(f"rounds/{job}/{number:07d}/{row['attempt']:03d}")
        if attempt is None or attempt["status"] != "committed":
            self.fault(
                revision, f"round {number} of job {job} was committed without the row of attempt {row['attempt']}"
            )
        self.commits[job, number] = row["attempt"]
        self.committed[job] = number
        self.made += 1


def dumped(found: list[Change]) -> str:
    """Changes as text, one on a line, so that they can be looked at again."""
    values = [None if change.value is None else base64.b64encode(change.value).decode() for change in found]
    pairs = zip(found, values, strict=True)
    return "".join(f"{json.dumps(change._replace(value=value))}\n" for change, value in pairs)


def read(text: str) -> list[Change]:
    """The changes that were dumped."""
    found = [Change(*json.loads(line)) for line in text.splitlines()]
    return [change._replace(value=None if change.value is None else base64.b64decode(change.value)) for change in found]


def look(address: str, name: str = "lifl", context: ssl.SSLContext | None = None) -> History:
    """What the history of a cluster says."""
    return judged(changes(address, name, context))


def judged(found: list[Change]) -> History:
    """What these changes say."""
    looker, groups = Looker(), defaultdict(list)
    for change in found:
        groups[change.revision].append(change)
    for revision in sorted(groups):
        looker.look(revision, groups[revision])
    return History(looker.faults, len(looker.terms), looker.made, max(groups, default=0))


def main() -> int:
    """Tell what was found; 1 when something does not hold."""
    parser = argparse.ArgumentParser(description="Looks at all that a cluster has written to etcd.")
    parser.add_argument("address", nargs="?", help="HOST:PORT of a member")
    parser.add_argument("name", nargs="?", default="lifl", help="the cluster's")
    parser.add_argument("--dump", type=Path, help="a file that keeps what was read")
    parser.add_argument("--from", type=Path, dest="file", help="a file that was kept")
    given = parser.parse_args()
    if (given.address is None) == (given.file is None):
        parser.error("either HOST:PORT or --from FILE")
    found = read(given.file.read_text()) if given.file else changes(given.address, given.name)
    if given.dump:
        given.dump.write_text(dumped(found))
    history = judged(found)
    for fault in history.faults:
        print(fault)
    figures = f"{history.terms} terms, {history.commits} commits, {history.revisions} revisions"
    print(f"{figures}: {len(history.faults)} faults")
    return 1 if history.faults else 0


if __name__ == "__main__":
    sys.exit(main())
