"""The audit log's lines, without the disk: how one is made, what equal ones become, and whether a chain is whole.

A line is JSON with `seq`, `at`, `event`, `who`, what it is about, and `prev`: the SHA-256 of the line before it,
without its newline.  So a line cannot be changed, taken out or put in between without the next one showing it.  A
chain says nothing of its own end: who may write the file can make all of it anew, so its last digest is worth keeping
elsewhere.

A process that is killed while it writes leaves a line that is not whole.  It stays as it is; the next one to write ends
it with a newline and puts a *mark* behind it: an `audit.torn` line, which names the digests of what is torn and of the
last whole line.  A line that is not whole and has no mark was changed.

Equal notes of what others than operators can repeat at will are written once, and then counted for a while (`Tally`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from lifl.core.limits import (
    AUDIT_JOINS_MAX,
    AUDIT_LINE_BYTES_MAX,
    AUDIT_REFUSALS_MAX,
    AUDIT_TEXT_CHARS_MAX,
    AUDIT_WINDOW_S,
    COUNT_MAX,
)

START = "0" * 64
"""What the first line of all has in the place of a digest."""
TORN, DROPPED = "audit.torn", "audit.dropped"
EVENTS = {
    "node.started": "lifld is up",
    "node.down": "`lifl down` was said",
    "node.ended": "lifld ends; a life without it was killed, and its last moments may not be noted",
    "client.join": "a client asks to take part in a job; when it may not, a refusal follows",
    "ticket.used": "somebody shows a ticket for a session's folds; when it may not, a refusal follows",
    "ticket.revoked": "a session's host lets tickets of a client for a fold (0: standing ones) count no more; "
    "when it may not, a refusal follows",
    "client.refused": "a client was told no, or a connection that had not said who it is",
    "node.drained": "`lifl drain` was said of a node: it gets nothing new",
    "node.calibrated": "a capacity was found by `lifl calibrate` and is kept; or (0) forgotten",
    "node.undrained": "`lifl drain --undo` was said of a node: it takes part again",
    "peer.joined": "a node takes part in the cluster, for the first time or again",
    "peer.left": "a node has gone in good order",
    "peer.lost": "a node was declared dead",
    "peer.refused": "a node that wanted to join may not",
    "job.submitted": "a job was submitted",
    "session.opened": "a program opened a session of folds",
    "job.cancelled": "a job was cancelled",
    "job.paused": "a job was paused",
    "job.resumed": "a job that was paused or over was let go on",
    "job.edited": "the config of a job was changed",
    "job.removed": "a job that was over was forgotten",
    "cli.refused": "a command was told no",
    "page.linked": "somebody was given a link to the page",
    "page.opened": "such a link was opened, in a browser: who has it visits the page from now on",
    "token.made": "a token was made",
    "token.used": "somebody has come with a token, and got a certificate",
    "token.refused": "somebody has come with a token, and got none",
    "token.revoked": "a token is good for nothing any more",
    "cert.renewed": "somebody has come with a certificate, and got a new one",
    "cert.told": "a node was told to renew its certificate now",
    "cert.revoked": "a certificate is good for nothing any more",
    "cert.kept": "another node has revoked a certificate, and the list of this one is full: here it is believed",
    "cert.rotated": "a new authority is in the place of the old one, which is still trusted",
    TORN: "the line before it was not written to its end",
    DROPPED: "so many notes could not be kept, because they came faster than the disk took them",
}
"""What is noted."""
KINDS_MAX = {
    "client.refused": AUDIT_REFUSALS_MAX,
    "peer.refused": AUDIT_REFUSALS_MAX,
    "cli.refused": AUDIT_REFUSALS_MAX,
    "token.refused": AUDIT_REFUSALS_MAX,
    "client.join": AUDIT_JOINS_MAX,
    "ticket.used": AUDIT_JOINS_MAX,
    "ticket.revoked": AUDIT_JOINS_MAX,
    "peer.joined": AUDIT_JOINS_MAX,
    "peer.left": AUDIT_JOINS_MAX,
    "peer.lost": AUDIT_JOINS_MAX,
    "page.linked": AUDIT_REFUSALS_MAX,
    "page.opened": AUDIT_REFUSALS_MAX,
}
"""Of the events that others than operators can repeat at will: how many that differ are told apart within
`AUDIT_WINDOW_S`."""
OTHERS = "others"


class Note(msgspec.Struct, frozen=True):
    """One thing to be noted; `text` tells more, and does not make two notes different."""

    event: str
    who: str
    about: dict[str, str | int] = {}
    text: str = ""
    count: int = 1

    @property
    def kind(self) -> tuple[Any, ...]:
        """What equal notes have in common."""
        return (self.event, self.who, *self.about.items())


class Tally:
    """Notes of events in `kinds_max`: the first of each kind is to be written, the others are counted.

    A window begins with the first note, and is `AUDIT_WINDOW_S` long; at its end each count is a note.  Kinds beyond
    the limit are counted together, by event and code.
    """

    def __init__(self, kinds_max: Mapping[str, int] = KINDS_MAX) -> None:
        self._kinds_max = kinds_max
        self._counts: dict[tuple[Any, ...], Note] = {}
        self._kinds: dict[str, int] = {}
        self.due_s: float | None = None  # when `flush` is due

    def add(self, note: Note, now: float) -> list[Note]:
        """Return what is to be written of a note that came at `now` (seconds of any clock)."""
        most = self._kinds_max.get(note.event)
        if most is None:
            return [note]
        if self.due_s is None:
            self.due_s = now + AUDIT_WINDOW_S
        counted = self._counts.get(note.kind)
        if counted is None and self._kinds.get(note.event, 0) >= most:
            code = {"code": note.about["code"]} if "code" in note.about else {}
            text = f"of more kinds than {most} in {AUDIT_WINDOW_S:g} s"
            note = Note(note.event, OTHERS, code, text, note.count)
            counted = self._counts.setdefault(note.kind, msgspec.structs.replace(note, count=0))
        if counted is not None:
            more = counted.count + note.count
            self._counts[note.kind] = msgspec.structs.replace(note, count=more)
            return []
        self._kinds[note.event] = self._kinds.get(note.event, 0) + 1
        self._counts[note.kind] = msgspec.structs.replace(note, count=0)
        return [note]

    def flush(self) -> list[Note]:
        """End the window; return what came in it beyond what was written."""
        counted = [note for note in self._counts.values() if note.count]
        self._counts, self._kinds, self.due_s = {}, {}, None
        return counted


class Link(NamedTuple):
    """The end of a chain: the number of its last line, and that line's digest."""

    seq: int = 0
    digest: str = START


def digest_of(line: bytes) -> str:
    """Return a line's digest, as the next one has it."""
    return hashlib.sha256(line).hexdigest()


def line_of(note: Note, at_unix_s: float, last: Link) -> bytes:
    """Return the line of a note that follows `last`, without its newline: at most `AUDIT_LINE_BYTES_MAX`."""
    at = datetime.fromtimestamp(at_unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line: dict[str, str | int] = {"seq": last.seq + 1, "at": at, "event": note.event, "who": _clipped(note.who)}
    line |= {name: _clipped(value) for name, value in note.about.items() if value != ""}
    if note.text:
        line["text"] = _clipped(note.text)
    if note.count != 1:
        line["count"] = note.count
    line["prev"] = last.digest
    # What is no UTF-8 becomes what JSON has for it.
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")


def _clipped(value: str | int) -> str | int:
    return value[:AUDIT_TEXT_CHARS_MAX] if isinstance(value, str) else value


def parsed(line: bytes) -> dict[str, Any] | None:
    """Return what a line says, or None: it is none, or not whole."""
    if len(line) > AUDIT_LINE_BYTES_MAX:
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("prev"), str) and isinstance(found.get("event"), str)
    return found if whole and type(found.get("seq")) is int and 1 <= found["seq"] <= COUNT_MAX else None


class Tail(NamedTuple):
    """How the lines of a log end: the last whole one, and what is behind it: lines that are none, and a piece."""

    last: Link
    torn: tuple[bytes, ...] = ()
    open: bool = False  # the last of them has no newline


def tail_of(data: bytes) -> Tail:
    """Return how lines end; when none of them is whole, `last` is that of no line."""
    lines = data.split(b"\n")
    piece = lines.pop()
    torn = [piece] if piece else []
    last = Link()
    for line in reversed(lines):
        if (found := parsed(line)) is not None:
            last = Link(found["seq"], digest_of(line))
            break
        torn.append(line)
    return Tail(last, tuple(reversed(torn)), bool(piece))


def mark_of(tail: Tail, at_unix_s: float) -> bytes:
    """Return the line that marks what is torn at the end of a log."""
    about: dict[str, str | int] = {
        "lines": len(tail.torn),
        "bytes": sum(map(len, tail.torn)),
        "whole": tail.last.digest,
        "torn": digest_of(b"\n".join(tail.torn)),
    }
    text = "the line before was not written to its end: the process that wrote it was killed, or the machine"
    number = Link(tail.last.seq + len(tail.torn), digest_of(tail.torn[-1]))
    return line_of(Note(TORN, "lifld", about, text), at_unix_s, number)


class Checked(NamedTuple):
    """What became of a check: the numbers of the first and last line, and the digest of the last one.

    `torn` is how many lines were not written to their end, and are marked; `broken` is where the chain breaks first,
    and why; `unmarked` how many bytes at the end are no whole line, and have no mark (yet).
    """

    first: int
    last: Link
    torn: int
    broken: str
    unmarked: int


def check(lines: Iterable[tuple[str, bytes]]) -> Checked:
    """Follow a chain; each line has its place, such as ``FILE:LINE``.  The first may follow ones that are gone."""
    first, torn_lines, last = 0, 0, Link()
    torn: list[tuple[str, bytes]] = []  # lines that are none, until a mark says so
    for place, line in lines:
        found = parsed(line)
        if found is None:
            torn.append((place, line))
            continue
        if torn:
            if not _marks(found, torn, last):
                break
            torn_lines += len(torn)
        elif found["seq"] == 1 or first:
            expected = Link(found["seq"] - 1, found["prev"])
            if expected != last:
                return Checked(first, last, torn_lines, f"{place}: {_difference(expected, last)}", 0)
        first = first or found["seq"] - len(torn)
        torn.clear()
        last = Link(found["seq"], digest_of(line))
    if not torn:
        return Checked(first, last, torn_lines, "", 0)
    if found is None:  # nothing is behind them: a node that is started on them marks them
        return Checked(first, last, torn_lines, "", sum(len(line) + 1 for _, line in torn))
    return Checked(
        first, last, torn_lines, f"{torn[0][0]}: it is no line of this log, and no mark says that it was torn so", 0
    )


def _marks(found: dict[str, Any], torn: list[tuple[str, bytes]], last: Link) -> bool:
    lines = [line for _place, line in torn]
    mark = (found["event"], found.get("lines"), found.get("torn"), found["prev"], found["seq"])
    of = found.get("whole") == last.digest or not last.seq  # the first lines that are kept may follow others
    seq = last.seq + len(lines) + 1 if last.seq else found["seq"]
    return of and mark == (TORN, len(lines), digest_of(b"\n".join(lines)), digest_of(lines[-1]), seq)


def _difference(expected: Link, last: Link) -> str:
    if expected.seq != last.seq:
        return f"line {expected.seq + 1} follows line {last.seq}: lines are missing, or were put in"
    return f"it follows another line {last.seq} than the one that is there: that was changed"
