"""What the command line and `lifld` say to each other."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgspec

from lifl.core.fields import Capacity, ClientPattern, Count, Integer, Message, Name, Path, StateNames, Text, Word
from lifl.core.identity import Role
from lifl.core.limits import (
    COUNT_MAX,
    EDITS_MAX,
    MODEL_PIECE_BYTES,
    NAME_CHARS_MAX,
    ROUNDS_MAX,
    STATUS_ROUNDS,
    TOKEN_TTL_S_MAX,
    TOKEN_USES_MAX,
)
from lifl.core.protocol.client import Refusal
from lifl.core.trust.enrolment import JobNames
from lifl.core.trust.policy import Action

TOO_MANY = "too-many-commands"
"""The code with which a connection is turned away, or gives way: nothing that it asked was done."""

DRAIN_S = 90.0
"""How long it is waited until a node is drained: as long as `lifl down` waits for its end."""

# ---- CLI ⇄ lifld -----------------------------------------------------------------------------------------------


class SubmitJob(Message, frozen=True):
    """A round config (as `config/job.JobConfig` builtins, paths absolute) to run.

    `states` are the names of the rule's state vectors (`rules.Rule.states`): only the submitter imports the rule.
    `replace`: a job that has the name is ended and forgotten; earlier versions do not know it, so else it is not said.
    """

    config: dict[str, Any]
    states: StateNames = ()
    follow: bool = False
    replace: bool | msgspec.UnsetType = msgspec.UNSET


class ListJobs(Message, frozen=True):
    """Asks for the jobs with numbers greater than `after`: answered by Answer {"jobs": [...], "more": ...}.

    `more` is the `after` of the next page, or None: that was all.
    """

    after: Count = 0


class JobStatus(Message, frozen=True):
    """Asks for one job with its last rounds (or only `round`) and receipts.

    Answered by Answer {"job", "config", "now", "models", "rounds", "more"}.

    Of the attempts before (round, attempt) `before` the `last` ones come, in order, as many as fit a frame; `more` is
    the `before` of the rest, or None.  Without `trees` receipts come without the tasks.
    """

    job: Path
    last: Count = STATUS_ROUNDS
    before: tuple[Count, Count] = (ROUNDS_MAX + 1, 0)
    round: Count | None = None
    trees: bool = True


class JobClients(Message, frozen=True):
    """Asks for the clients of a job that runs, whose names come after `after`: {"clients": [...], "more": ...}.

    Each has client, here, selected, delivered, late, left, declined, spoilt, misses, level; `more` is the `after` of
    the next page, or None.
    """

    job: Path
    after: Word = ""


class CancelJob(Message, frozen=True):
    """Ends a job; its running round is dropped, committed models stay."""

    job: Path


class PauseJob(Message, frozen=True):
    """Lets no further round of a job begin, until ResumeJob: {"job", "finishing": the round that runs, or None}."""

    job: Path


class ResumeJob(Message, frozen=True):
    """Lets a job go on that is paused, or over: from its last committed model, with the rule's state.

    It gets so many `rounds`, or so many `more`; neither given: those that it has.  Answered by Answer {"job", "status",
    "committed", "rounds"}.
    """

    job: Path
    rounds: Annotated[int, msgspec.Meta(ge=1, le=ROUNDS_MAX)] | None = None
    more: Annotated[int, msgspec.Meta(ge=1, le=ROUNDS_MAX)] | None = None


class EditJob(Message, frozen=True):
    """Changes a job's config, from the next round on: {"job", "changes", "from_round"}.

    `overrides` are ``section.key=value`` each; the keys of `config/edits.EDITABLE` may change.  `from_round` is None of
    a job that is over.
    """

    job: Path
    overrides: Annotated[tuple[Text, ...], msgspec.Meta(max_length=EDITS_MAX)]


class RemoveJob(Message, frozen=True):
    """Forgets a job that is over, and (`models`) removes the files of its models: {"job", "folder", "files", "bytes"}.

    `files` and `bytes` are what was removed from `folder`; `copies` is there when copies on other nodes go, too.
    """

    job: Path
    models: bool = False


class Snapshot(Message, frozen=True):
    """Asks for everything that `lifl top` shows; without `trees` running rounds come without their tasks."""

    trees: bool = True


class ListNodes(Message, frozen=True):
    """Asks for the nodes of the cluster: answered by Answer {"nodes": [...]}, the coordinator first.

    Each has node, state (alive, suspect, dead, left), since_s (how long it has been so), incarnation, coordinator, its
    control and gateway addresses, rate_per_s, execution_s, capacity, residual, arena_bytes, arena_used_bytes, workers.
    """


class PlanJob(Message, frozen=True):
    """Asks for the plan that a round of this job (as in SubmitJob) would get now; nothing is run.

    Answered by Answer {"request": ..., "plan": ...}: `planning/plan.PlanRequest` and `Plan` as builtins.
    """

    config: dict[str, Any]
    states: StateNames = ()


class PlansOfRound(Message, frozen=True):
    """Asks how a round was planned.

    Answered by Answer {"decisions": [{"attempt", "decided_unix_s", "request", "plan"}, ...], "more": ...}, the first
    one first: a round that is tried again is planned again.  One that cannot be read has a "fault" instead.  `more` is
    the `after` of the next page, or None: that was all.
    """

    job: Path
    round: Integer
    after: Count = 0


class UpdatesOfRound(Message, frozen=True):
    """Asks for the updates of a committed round, of clients whose names come after `after`.

    Answered by Answer {"attempt", "updates": [{"client", "weight", "digest"}, ...], "updates_digest", "more"}: `digest`
    of 16 hexadecimal digits (empty: it is not known), `updates_digest` as the receipt has it; `more` is the `after` of
    the next page, or None.
    """

    job: Path
    round: Count
    after: Word = ""


class Follow(Message, frozen=True):
    """Asks for the job's events as they happen (Event frames), until it ends."""

    job: Path


class DebugRecord(Message, frozen=True):
    """Asks for a recording of the engine's last events: answered by Answer {"path": ..., "events": ...}."""


class Shutdown(Message, frozen=True):
    """Drain and exit 0: answered by Answer, then EOF when all is gone."""


class PutModel(Message, frozen=True):
    """Brings a piece of a model's file to the node: answered by Answer {"received": ..., "path": ...}.

    `digest` is the SHA-256 of the file; `path`, on the node, is there when all of it is.
    """

    digest: Annotated[str, msgspec.Meta(min_length=64, max_length=64, pattern=r"\A[0-9a-f]{64}\Z")]
    offset: Count
    data: Annotated[bytes, msgspec.Meta(max_length=MODEL_PIECE_BYTES)]
    total_bytes: Count


class ReadModel(Message, frozen=True):
    """Asks for a piece of a committed model's file: answered by Answer {"bytes": ..., "data": ...}."""

    job: Path
    round: Count
    offset: Count = 0


class DrainNode(Message, frozen=True):
    """Lets a node get nothing new and finish what it has, or (`undo`) take part again: Answer {"node": its row}.

    `node` is its id as `lifl nodes` shows it, or the beginning of one.  The answer comes when nothing is left there, or
    the node is gone, or `DRAIN_S` are over: the row's `drain` says which.
    """

    node: Word
    undo: bool = False


class KeepCapacity(Message, frozen=True):
    """Has the node keep what `lifl calibrate` has found as its capacity, over restarts.

    Answered by Answer {"capacity": ...}.  0: it forgets that, and measures quickly again.
    """

    capacity: Capacity


class CreateToken(Message, frozen=True):
    """Asks for a token: answered by Answer {"token": the one line, "number", "expires_unix_s"}.

    Who has it gets a certificate of `role`, for a name like `pattern`; a client's is for `jobs` alone, if it has any.
    """

    role: Role
    pattern: ClientPattern = "*"
    jobs: JobNames = ()
    uses: Annotated[int, msgspec.Meta(ge=1, le=TOKEN_USES_MAX)] = 1
    ttl_s: Annotated[float, msgspec.Meta(gt=0, le=TOKEN_TTL_S_MAX)] = 900.0


class CreateBearer(Message, frozen=True):
    """Asks for a bearer token: answered as CreateToken.

    Who has it takes part as this name in this job, without a certificate, over as many connections as it likes.
    """

    role: Role
    name: Name
    job: Name
    ttl_s: Annotated[float, msgspec.Meta(gt=0, le=TOKEN_TTL_S_MAX)] = 900.0


class ListTokens(Message, frozen=True):
    """Asks for the tokens: answered by Answer {"tokens": [...]}, without their secrets."""


class RevokeToken(Message, frozen=True):
    """Lets nobody in by a token any more; who came by it stays, but for who takes part by a bearer token."""

    number: Word


class ListCertificates(Message, frozen=True):
    """Asks for the certificates that have not expired: Answer {"certificates": [...], "more": ...}, as for ListJobs."""

    after: Count = 0


class RevokeCertificate(Message, frozen=True):
    """Revokes a certificate by its serial, or all of a NAME or ROLE/NAME: answered by Answer {"revoked": [...]}."""

    which: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX + 16)]


class RenewCertificate(Message, frozen=True):
    """Has the node renew its own certificate: answered by Answer {} when it has begun."""


class RotateAuthority(Message, frozen=True):
    """Puts a new authority beside the old one, which stays trusted until all that it issued has expired."""


class OpenPage(Message, frozen=True):
    """Asks for a link to the node's page: answered by Answer {"address", "tls", "link", "role", "expires_unix_s"}.

    Who opens it first looks at the page as `role` (empty: as who asks), until the visit is over.
    """

    role: Literal["", "operator", "reader"] = ""


class ReadAudit(Message, frozen=True):
    """Asks for lines of the audit log, in order, the last ones before line `before`: {"lines", "more", "chain"}.

    Each line is as it stands there, without `prev`; one that is not whole is {"seq", "torn": its text}.  `more` is the
    `before` of those before them, or None.  With `verify` `chain` says whether the whole log is as it was written:
    {"first", "last", "digest", "torn", "unmarked_bytes", "broken"}; else it is None.
    """

    before: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)] = COUNT_MAX
    verify: bool = False


class ReadLog(Message, frozen=True):
    """Asks for the end of `lifld`'s log: Answer {"lines": [...]}, or None for a node that logs to its terminal."""


FromCli = (
    SubmitJob
    | ListJobs
    | JobStatus
    | JobClients
    | CancelJob
    | PauseJob
    | ResumeJob
    | EditJob
    | RemoveJob
    | Snapshot
    | ListNodes
    | PlanJob
    | PlansOfRound
    | UpdatesOfRound
    | Follow
    | DebugRecord
    | Shutdown
    | PutModel
    | ReadModel
    | DrainNode
    | KeepCapacity
    | CreateToken
    | CreateBearer
    | ListTokens
    | RevokeToken
    | ListCertificates
    | RevokeCertificate
    | RenewCertificate
    | RotateAuthority
    | OpenPage
    | ReadAudit
    | ReadLog
)
ACTION_OF: dict[type[Message], Action] = {
    SubmitJob: Action.SUBMIT_JOB,
    ListJobs: Action.SEE_JOBS,
    JobStatus: Action.SEE_JOBS,
    JobClients: Action.SEE_JOBS,
    CancelJob: Action.CANCEL_JOB,
    PauseJob: Action.CHANGE_JOB,
    ResumeJob: Action.CHANGE_JOB,
    EditJob: Action.CHANGE_JOB,
    RemoveJob: Action.CHANGE_JOB,
    Snapshot: Action.SEE_NODES,
    ListNodes: Action.SEE_NODES,
    PlanJob: Action.PLAN_JOB,
    PlansOfRound: Action.SEE_JOBS,
    UpdatesOfRound: Action.SEE_JOBS,
    Follow: Action.SEE_JOBS,
    DebugRecord: Action.RECORD,
    Shutdown: Action.STOP_NODE,
    PutModel: Action.SUBMIT_JOB,
    ReadModel: Action.READ_MODEL,
    DrainNode: Action.STOP_NODE,
    KeepCapacity: Action.STOP_NODE,
    CreateToken: Action.MANAGE_TOKENS,
    CreateBearer: Action.MANAGE_TOKENS,
    ListTokens: Action.MANAGE_TOKENS,
    RevokeToken: Action.MANAGE_TOKENS,
    ListCertificates: Action.SEE_CERTIFICATES,
    RevokeCertificate: Action.MANAGE_CERTIFICATES,
    RenewCertificate: Action.MANAGE_CERTIFICATES,
    RotateAuthority: Action.MANAGE_CERTIFICATES,
    OpenPage: Action.OPEN_PAGE,
    ReadAudit: Action.SEE_LOG,
    ReadLog: Action.SEE_LOG,
}
"""What each request wants to do; who may is in `trust/policy.py`."""
assert set(ACTION_OF) == set(get_args(FromCli))


class Answer(Message, frozen=True):
    """The result of a request."""

    result: dict[str, Any]


class Event(Message, frozen=True):
    """Something happened to a followed job: `name` such as ``round.committed``; `fields` go with it."""

    name: Word
    fields: dict[str, Any]


ToCli = Answer | Event | Refusal
