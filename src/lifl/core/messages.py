"""Every message of every channel within a node: typed, frozen, limited.

Four channels: client ⇄ gateway, gateway ⇄ lifld and CLI ⇄ lifld are here, zygote and workers ⇄ lifld in
`worker_messages.py`.  (What nodes say to each other is in `peering.py` and `orders.py`.)  Each direction is one union
of tagged structs, given to `core/wire.FrameDecoder`.  Unknown fields and wrong types are refused by their path.  Keys
travel as their 16 bytes.

An upload is two steps so that a refusal costs no bandwidth: `Submit` is answered by `Go`, then the body (exactly
`data_bytes` raw bytes in the layout's order) follows and is answered by `Accepted`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from lifl.core.schema import TensorSpec

PROTOCOL_VERSION = 1
NAME_CHARS_MAX = 64
METRICS_MAX = 16
MEMBER_BYTES_MAX = 1024
TEXT_CHARS_MAX = 4096

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
"""A job's or client's name."""
NAME_RULE = f"letters, digits and ._:- , a letter or digit first, at most {NAME_CHARS_MAX}"
MetricName = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
Metrics = Annotated[dict[MetricName, float], msgspec.Meta(max_length=METRICS_MAX)]
Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]
Tensors = Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=65_536)]
Count = Annotated[int, msgspec.Meta(ge=0)]
KeyBytes = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=True, forbid_unknown_fields=True):
    """The base of all messages; the tag is the class's name."""


# ---- client → gateway ------------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """The first frame of a connection.  `direct`: the client can fill its slot itself (AF_UNIX only)."""

    version: int
    client: Name
    direct: bool = False


class Join(Message, frozen=True):
    """Takes part in `job`, and waits to be selected.  `holding`: the round whose update the client still keeps.

    `connected_ns` is the client's clock when it connected: where two connections claim one name, the later one has it.
    """

    job: Name
    holding: Count | None = None
    connected_ns: Count = 0


class GetModel(Message, frozen=True):
    """Asks for the model that round `round` starts from.  `checked`: Checksums are to follow the bytes."""

    job: Name
    round: Count
    checked: bool = False


class Submit(Message, frozen=True):
    """Announces an update of `data_bytes` bytes: answered by Go, Accepted (it is known already), Busy or Refusal."""

    job: Name
    round: Count
    weight: float
    data_bytes: Count
    tensors: Tensors
    metrics: Metrics = {}


class Filled(Message, frozen=True):
    """The client has written the slot of its `Go(direct=True)` itself."""

    job: Name
    round: Count


class Leave(Message, frozen=True):
    """Takes part no longer."""

    job: Name


class Offer(Message, frozen=True):
    """Another node's gateway has a partial of `data_bytes` bytes, with `meta_bytes` of members behind them.

    Answered by Go (send both, then Checksums), Accepted (it is here already), Busy or Refusal.  (number, epoch, branch)
    is its identity.
    """

    number: Count
    epoch: Count
    branch: Count
    weight: float
    members: Count
    data_bytes: Count
    meta_bytes: Count


class Checksums(Message, frozen=True):
    """What `shm/checksum` makes of the bytes that were just sent: it follows them, so that one pass computes and sends.

    Either way: after the body of an Offer, and after a model that was asked for `checked`.
    """

    data: Count
    meta: Count = 0


FromClient = Hello | Join | GetModel | Submit | Filled | Leave | Offer | Checksums


# ---- gateway → client ------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True):
    """The answer to Hello."""

    version: int
    node: str
    direct: bool = False


class Selected(Message, frozen=True):
    """The client is to train in this round.  `tensors` is the model's schema; `deadline_s` the seconds left.

    `gateway` (HOST:PORT) is where to get the model and to submit; empty: over this connection.
    """

    job: Name
    round: Count
    deadline_s: float
    tensors: Tensors
    data_bytes: Count
    options: dict[str, Any] = {}
    gateway: str = ""


class Model(Message, frozen=True):
    """Exactly `data_bytes` raw bytes of the model follow this frame, in the layout's order."""

    job: Name
    round: Count
    tensors: Tensors
    data_bytes: Count


class Go(Message, frozen=True):
    """Send the body now.  With `direct`, the arena's descriptor came along: write at `offset` and say Filled."""

    job: Name
    round: Count
    direct: bool = False
    offset: Count = 0


class Accepted(Message, frozen=True):
    """The update is sealed in the arena and in the ledger; it will be counted once or expire with a reason."""

    job: Name
    round: Count


class Busy(Message, frozen=True):
    """The arena is full: nothing was taken; ask again after `retry_after_s`."""

    job: Name
    round: Count
    retry_after_s: float


USE_GATEWAY = "use-gateway"
"""The code of a Refusal that means: ask the gateway at `field` (HOST:PORT) instead."""


class Refusal(Message, frozen=True):
    """A request is answered "no"; the connection stays usable unless code is ``protocol``."""

    code: str
    field: str
    text: Text
    job: str = ""
    round: int = -1


class Committed(Message, frozen=True):
    """The round's model is durable.  `counted`: this client's update is in it."""

    job: Name
    round: Count
    counted: bool


class RoundOver(Message, frozen=True):
    """The round ended without this client's update, or failed; `reason` says why.

    To a client that waits for an answer about that round it may come before the answer, or in its place; so may
    Committed and JobOver.
    """

    job: Name
    round: Count
    reason: Text


class JobOver(Message, frozen=True):
    """The job has ended: ``finished``, ``failed`` or ``cancelled``."""

    job: Name
    status: str
    reason: Text = ""


ToClient = Welcome | Selected | Model | Checksums | Go | Accepted | Busy | Refusal | Committed | RoundOver | JobOver


# ---- gateway → lifld -------------------------------------------------------------------------------------------
# `conn` is the gateway's number of the client's connection.


class GatewayReady(Message, frozen=True):
    """The gateway listens.  `listen` are the bound addresses as HOST:PORT."""

    pid: int
    listen: tuple[str, ...]


class ClientJoined(Message, frozen=True):
    """A client said Join."""

    conn: int
    client: Name
    job: Name
    holding: Count | None = None
    connected_ns: Count = 0


class ClientLeft(Message, frozen=True):
    """A client said Leave for `job`, or (job empty) its connection ended."""

    conn: int
    job: str = ""


class Disconnected(Message, frozen=True):
    """The gateway has ended a client's connection, because of `reason`: for the node's log.  ClientLeft follows.

    `client` is empty where none had said Hello.
    """

    conn: int
    client: str
    reason: Text


class GatewayLost(Message, frozen=True):
    """An agent's gateway has ended, and all its clients' connections with it."""


class Admit(Message, frozen=True):
    """A client's Submit that passed the gateway's checks against the job's schema asks for a slot.

    `direct`: the client will write to the slot itself.
    """

    conn: int
    client: Name
    job: Name
    round: Count
    weight: float
    metrics: Metrics = {}
    direct: bool = False


class Sealed(Message, frozen=True):
    """The update named by an Admitted key is checked and sealed in the arena."""

    conn: int
    key: KeyBytes
    received_bytes: Count
    copied_bytes: Count = 0


class Aborted(Message, frozen=True):
    """The update of an Admitted key will not come (disconnected, or bad content: `reason`).

    `writing`: a direct client lives and may not have heard that yet; it may still write to the slot.
    """

    conn: int
    key: KeyBytes
    reason: Text
    writing: bool = False


class Progress(Message, frozen=True):
    """So much of a followed update is in its slot, from the front; not yet checked."""

    key: KeyBytes
    received_bytes: Count


class WantModel(Message, frozen=True):
    """A client asks for the model that a round starts from."""

    conn: int
    job: Name
    round: Count


class ModelSent(Message, frozen=True):
    """The bytes of a granted model have been sent (or the client is gone): the pin may go."""

    conn: int
    key: KeyBytes
    sent_bytes: Count


class GatewayStats(Message, frozen=True):
    """The gateway's totals, the answer to AskStats."""

    received_bytes: Count
    sent_bytes: Count
    copied_bytes: Count
    connections: Count
    cpu_s: float


class Offered(Message, frozen=True):
    """Another node's gateway says Offer: asks for room.  Then Sealed or Aborted, as for an update."""

    conn: int
    number: Count
    epoch: Count
    branch: Count
    members: Count
    data_bytes: Count
    meta_bytes: Count


class CarryEnded(Message, frozen=True):
    """The partial of a Carry is at the other node (`error` empty), or could not be brought there.

    `sent_bytes` is what went over the wire, of all tries.
    """

    key: KeyBytes
    error: Text
    sent_bytes: Count


class FetchEnded(Message, frozen=True):
    """The model of a Fetch is sealed in the object (`error` empty), or could not be fetched.

    `received_bytes` is what came over the wire, of all tries.
    """

    key: KeyBytes
    error: Text
    received_bytes: Count


FromGateway = (
    GatewayReady
    | ClientJoined
    | ClientLeft
    | Disconnected
    | Admit
    | Sealed
    | Aborted
    | Progress
    | WantModel
    | ModelSent
    | GatewayStats
    | Offered
    | CarryEnded
    | FetchEnded
)


# ---- lifld → gateway -------------------------------------------------------------------------------------------


class JobSchema(Message, frozen=True):
    """The gateway may admit updates of this job; `number` is the job's in the arena's table."""

    job: Name
    number: int
    tensors: Tensors


class JobForget(Message, frozen=True):
    """The job has ended; its schema may be dropped.  Connections stay."""

    job: Name


class Admitted(Message, frozen=True):
    """The slot for the client's update; `member` is the bytes for the object's meta region."""

    conn: int
    key: KeyBytes
    member: bytes


class ModelGranted(Message, frozen=True):
    """The model object to send; pinned until ModelSent."""

    conn: int
    job: Name
    round: Count
    key: KeyBytes


class FollowUpdate(Message, frozen=True):
    """Tell by Progress, from now on, how far the update of an Admitted key is."""

    conn: int
    key: KeyBytes


class Deliver(Message, frozen=True):
    """Send `message` (a ToClient struct, encoded) to a connection."""

    conn: int
    message: msgspec.Raw


class HangUp(Message, frozen=True):
    """Close a connection; 0: all of them.  Of what was granted or joined over each it is told as for any other end."""

    conn: int = 0


class AskStats(Message, frozen=True):
    """Asks for GatewayStats."""


class Drain(Message, frozen=True):
    """Accept no more connections, end those there are, and exit 0."""


class Carry(Message, frozen=True):
    """Bring the sealed partial `key` to the gateway at `address` (HOST:PORT), by Offer; answered by CarryEnded.

    Until that answer the object must stay.  A later Carry of the same key takes the place of the earlier one, which is
    then not answered; so does a later Fetch.
    """

    key: KeyBytes
    address: str
    number: Count
    epoch: Count
    branch: Count


class Fetch(Message, frozen=True):
    """Get the model that round `round` of `job` starts from at `address`, and seal it; answered by FetchEnded."""

    key: KeyBytes
    address: str
    job: Name
    round: Count


ToGateway = (
    JobSchema | JobForget | Admitted | FollowUpdate | ModelGranted | Deliver | HangUp | AskStats | Drain | Carry | Fetch
)


# ---- CLI ⇄ lifld -----------------------------------------------------------------------------------------------


class SubmitJob(Message, frozen=True):
    """A round config (as `core/config.JobConfig` builtins, paths absolute) to run.

    `states` are the names of the rule's state vectors (`rules.Rule.states`): only the submitter imports the rule.
    """

    config: dict[str, Any]
    states: tuple[Name, ...] = ()
    follow: bool = False


class ListJobs(Message, frozen=True):
    """Asks for all jobs: answered by Answer {"jobs": [...]}."""


class JobStatus(Message, frozen=True):
    """Asks for one job with its rounds and receipts."""

    job: str


class CancelJob(Message, frozen=True):
    """Ends a job; its running round is dropped, committed models stay."""

    job: str


class Snapshot(Message, frozen=True):
    """Asks for everything that `lifl top` shows."""


class ListNodes(Message, frozen=True):
    """Asks for the nodes of the cluster: answered by Answer {"nodes": [...]}, the coordinator first.

    Each has node, state (alive, suspect, dead, left), since_s (how long it has been so), incarnation, coordinator, its
    control and gateway addresses, rate_per_s, execution_s, capacity, residual, arena_bytes, arena_used_bytes, workers.
    """


class PlanJob(Message, frozen=True):
    """Asks for the plan that a round of this job (as in SubmitJob) would get now; nothing is run.

    Answered by Answer {"request": ..., "plan": ...}: `core/plan.PlanRequest` and `Plan` as builtins.
    """

    config: dict[str, Any]
    states: tuple[Name, ...] = ()


class PlansOfRound(Message, frozen=True):
    """Asks how a round was planned.

    Answered by Answer {"decisions": [{"attempt", "decided_unix_s", "request", "plan"}, ...]}, the first one first: a
    round that is tried again is planned again.
    """

    job: str
    round: int


class Follow(Message, frozen=True):
    """Asks for the job's events as they happen (Event frames), until it ends."""

    job: str


class Shutdown(Message, frozen=True):
    """Drain and exit 0: answered by Answer, then EOF when all is gone."""


FromCli = (
    SubmitJob | ListJobs | JobStatus | CancelJob | Snapshot | ListNodes | PlanJob | PlansOfRound | Follow | Shutdown
)


class Answer(Message, frozen=True):
    """The result of a request."""

    result: dict[str, Any]


class Event(Message, frozen=True):
    """Something happened to a followed job: `name` such as ``round.committed``; `fields` go with it."""

    name: str
    fields: dict[str, Any]


ToCli = Answer | Event | Refusal
