"""The rows of a node's database as they are taken: every column is looked at here, before anything is made of it.

What cannot be read, be it damaged or of another version, harms nothing else: of a job's row, or a decision's, there is
`UnreadableJob`, or `UnreadablePlan`, in its place; of a round's row that field is left out, and `RoundRow.fault` names
it.  All say which row it is.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgpack
import msgspec

from lifl.core.config.job import JobConfig, parse_job
from lifl.core.coordinator.receipt import Receipt
from lifl.core.errors import ConfigError
from lifl.core.fields import Bits64, Count, Digests, Name, Path, Real, StateNames
from lifl.core.ids import ATTEMPTS_MAX
from lifl.core.limits import BRANCH_UPDATES_MAX, BRANCHES_MAX, PLAN_BYTES_MAX, ROUNDS_MAX, UNIX_S_MAX
from lifl.core.planning.plan import Plan, PlanRequest
from lifl.core.schema import TensorSpec

UNREADABLE = (ValueError, TypeError, RecursionError, msgpack.UnpackException, zlib.error, ConfigError)
"""What reading one raises."""
_UnixS = Annotated[float, msgspec.Meta(ge=0, le=UNIX_S_MAX)]
_Round = Annotated[int, msgspec.Meta(ge=0, le=ROUNDS_MAX)]
_Attempt = Annotated[int, msgspec.Meta(ge=0, le=ATTEMPTS_MAX)]
_Branch = Annotated[int, msgspec.Meta(ge=0, le=BRANCHES_MAX)]
_NodeId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{1,16}\Z")]
_Status = Literal["open", "committed", "failed", "damaged"]
_Updates = Annotated[int, msgspec.Meta(ge=0, le=BRANCH_UPDATES_MAX)]
JOB_COLUMNS: dict[str, Any] = {
    "number": int,
    "name": Name,
    "folder": Path,
    "status": Literal["new", "running", "finished", "failed", "cancelled"],
    "reason": str,
    "submitted_unix_s": _UnixS,
    "config": bytes,
    "tensors": bytes,
    "states": bytes,
}
ROUND_COLUMNS: dict[str, Any] = {
    "round": _Round,
    "attempt": _Attempt,
    "status": _Status,
    "saved_unix_s": _UnixS,
    "fields": bytes,
}
"""The columns of a round's row; ``damaged``: it was committed, or open."""


class KeptRow(TypedDict):
    """Which models stayed when a round was committed: what `coordinator/keeping.py` goes on from."""

    since: _Round
    best: NotRequired[tuple[_Round, Real]]


FIELDS: dict[str, Any] = {
    "metrics": dict[str, float],
    "path": Path,
    "reason": str,
    "receipt": Receipt,
    "members": list[str],
    "digests": Digests,
    "parts": list[tuple[_Branch, _NodeId, _Updates]],
    "next_part": Count,
    "term": Count,
    "holders": list[_NodeId],
    "evaluation": dict[str, Any],
    "stopping": list[tuple[float | None, int]],
    "keep": KeptRow,
    "losses": list[Real | None],
    "updates": list[tuple[Real, Bits64]],
}
"""The fields of a round's row."""
COSTS = frozenset(("receipt", "members", "losses", "updates", "parts", "next_part"))
"""What a row has for as long as its round is one of the last `history.keep.receipts`."""
SHOWN_ONLY = frozenset(
    ("metrics", "path", "reason", "receipt", "saved_unix_s", "evaluation", "stopping", "keep", "losses", "updates")
)
"""What no round is run on."""
_FAULT_CHARS_MAX = 200


class JobRow(msgspec.Struct, frozen=True):
    """A job as it was submitted, and what became of it."""

    number: int
    name: str
    config: JobConfig
    packed_tensors: bytes
    states: tuple[str, ...]
    folder: str
    status: str
    reason: str
    submitted_unix_s: float

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The model's tensors.  Raise one of `UNREADABLE` when they cannot be read."""
        found: tuple[TensorSpec, ...] = unpack(self.packed_tensors, tuple[TensorSpec, ...])
        return found


class UnreadableJob(msgspec.Struct, frozen=True):
    """A job whose row cannot be read; `fault` tells why.

    Without a name it goes by `#` and its number.
    """

    number: int
    name: str
    folder: str
    status: str
    reason: str
    submitted_unix_s: float
    fault: str


AnyJob = JobRow | UnreadableJob


class RoundRow(msgspec.Struct, frozen=True):
    """One attempt at one round.

    `unread` are the columns and fields that cannot be read, and are left out; `fault` tells which and why.
    """

    round: int
    attempt: int
    status: str
    fields: dict[str, Any]
    saved_unix_s: float | None
    unread: frozenset[str] = frozenset()
    fault: str = ""


class PlanRow(msgspec.Struct, frozen=True):
    """A decision of the planner, and what it was made from."""

    round: int
    attempt: int
    request: PlanRequest
    plan: Plan
    decided_unix_s: float


class UnreadablePlan(msgspec.Struct, frozen=True):
    """A decision whose row cannot be read; `fault` tells why."""

    round: int
    fault: str


AnyPlan = PlanRow | UnreadablePlan


def number_of(name: str) -> int | None:
    """Return the number in the name of a job that has none that can be read."""
    found = re.fullmatch(r"#([0-9]{1,18})", name)
    return int(found[1]) if found else None


# ---- reading ---------------------------------------------------------------------------------------------------------


def job_row(row: Sequence[Any]) -> AnyJob:
    """Return the job of a row of all `JOB_COLUMNS`."""
    found = dict(zip(JOB_COLUMNS, row, strict=True))
    faults: dict[str, str] = {}
    read = _readable(found, JOB_COLUMNS, faults)
    if "status" in faults:
        faults["status"] = f"there is no status {found['status']!r:.40}"
    config, states = None, ()
    try:
        config = parse_job(unpack(found["config"], dict[str, Any]))
        if read.get("name") != config.job.name:
            faults["name"] = f"it is {found['name']!r:.80}, that of its config is {config.job.name!r}"
    except UNREADABLE as error:
        faults["config"] = _short(error)
    try:
        states = unpack(found["states"], StateNames)
    except UNREADABLE as error:
        faults["states"] = _short(error)
    number, folder, reason = found["number"], read.get("folder", ""), read.get("reason", "")
    at = read.get("submitted_unix_s", 0.0)
    if config is None or faults:
        told = "; ".join(f"{name}: {text}" for name, text in faults.items())
        text = f"its row in the database cannot be read: {told}"
        name = read.get("name") or f"#{number}"
        return UnreadableJob(number, name, folder, read.get("status", "running"), reason, at, text)
    return JobRow(number, config.job.name, config, found["tensors"], states, folder, read["status"], reason, at)


def round_row(job: str, row: Sequence[Any]) -> RoundRow:
    """Return the attempt at a round of a row of all `ROUND_COLUMNS`."""
    faults: dict[str, str] = {}
    columns = _readable(dict(zip(ROUND_COLUMNS, row, strict=True)), ROUND_COLUMNS, faults)
    try:
        found = unpack(row[-1], dict[str, Any])
    except UNREADABLE as error:
        found, faults["fields"] = {}, _short(error)
    if not found.get("receipt"):
        found.pop("receipt", None)  # the initial model has none
    fields = _readable(found, FIELDS, faults)
    fault = ""
    if faults:
        which = f"the row of job {job}, round {row[0]!r:.40}, attempt {row[1]!r:.40}"
        told = "; ".join(f"{name}: {text}" for name, text in faults.items())
        fault = f"{which}, cannot be read: {told}"
    return RoundRow(
        columns.get("round", 0),
        columns.get("attempt", 0),
        columns.get("status", "unreadable"),
        fields,
        columns.get("saved_unix_s"),
        frozenset(faults),
        fault,
    )


def without_costs(packed: bytes) -> bytes | None:
    """Return the fields of a round without its receipt and clients; None: it has none, or cannot be read."""
    try:
        found = unpack(packed, dict[str, Any])
    except UNREADABLE:
        return None
    short = {name: value for name, value in found.items() if name not in COSTS}
    return msgpack.packb(short) if len(short) < len(found) else None


def _readable(found: Mapping[str, Any], kinds: Mapping[str, Any], faults: dict[str, str]) -> dict[str, Any]:
    """Return what is of its kind; add to `faults` why others are not."""
    read = {}
    for name, kind in kinds.items():
        if name in found:
            try:
                read[name] = msgspec.convert(found[name], kind)
            except UNREADABLE as error:
                faults[name] = _short(error)
    return read


def plan_row(job: str, number: int, row: Sequence[Any]) -> AnyPlan:
    """Return the decision about a round of a row (number, attempt, decision, decided_unix_s)."""
    attempt, packed, at = row
    try:
        msgspec.convert((attempt, at), tuple[_Attempt, _UnixS])
        unpacker = zlib.decompressobj()
        decision = unpacker.decompress(packed, PLAN_BYTES_MAX)
        if not unpacker.eof:
            raise ValueError(f"it is cut off, or takes more than {PLAN_BYTES_MAX} bytes")
        request, plan = unpack(decision, tuple[PlanRequest, Plan])
    except UNREADABLE as error:
        which = f"a decision about round {number} of job {job}, attempt {attempt!r:.40}"
        return UnreadablePlan(number, f"{which}, cannot be read: {_short(error)}")
    return PlanRow(number, attempt, request, plan, at)


def unpack(data: bytes, kind: Any) -> Any:
    """Return what is packed in `data`.  Raise one of `UNREADABLE`."""
    return msgspec.convert(msgpack.unpackb(data, strict_map_key=False), kind)


def _short(error: BaseException) -> str:
    return f"{str(error) or type(error).__name__:.{_FAULT_CHARS_MAX}}".replace("`", "")
