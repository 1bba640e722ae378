"""What a node's gateway and its `lifld` say to each other.  Keys travel as their 16 bytes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from lifl.core.fields import (
    Address,
    Bits64,
    ConfigPath,
    Count,
    FieldPath,
    FoldSize,
    Gateways,
    KeyBytes,
    Message,
    Metrics,
    Name,
    NotNegative,
    Pid,
    Properties,
    RevokedTicketList,
    RuleName,
    Secret,
    StateNames,
    Tensors,
    Text,
    Ticket,
    TrainablePatterns,
    Weight,
    Who,
    Word,
)
from lifl.core.limits import BYTES_PER_S_MAX, CONTRIBUTION_BYTES_MAX
from lifl.core.planning.client_list import Told
from lifl.core.planning.treatment import Patterns
from lifl.core.protocol import small_models as sm
from lifl.core.protocol import tickets as tm
from lifl.core.protocol.shown_peer import ShownPeer
from lifl.core.trust.bearers import Bearers
from lifl.core.trust.revocation import Revocations

# ---- gateway → lifld; `conn` is the gateway's number of the client's connection --------------------------------


class GatewayReady(Message, frozen=True):
    """The gateway listens.  `listen` are the bound addresses as HOST:PORT; `landlock` is as in ZygoteReady."""

    pid: Pid
    listen: Annotated[tuple[Address, ...], msgspec.Meta(max_length=2)]
    landlock: Count = 0


class Greeted(Message, frozen=True):
    """A client (or another node's gateway) has said Hello: `who` is at the other end.  ClientLeft follows in time."""

    conn: Count
    who: Who


class ClientRefused(Message, frozen=True):
    """`who` was told no, `count` times: for the audit log.  `client` is empty where none had said Hello."""

    who: Who
    client: Word = ""
    job: Word = ""
    code: Word = ""
    field: FieldPath = ""
    text: Text = ""
    count: Count = 1


class ClientJoined(Message, frozen=True):
    """A client said Join."""

    conn: Count
    client: Name
    job: Name
    holding: Count | None = None
    connected_ns: Count = 0
    properties: Properties | msgspec.UnsetType = msgspec.UNSET


class ClientLeft(Message, frozen=True):
    """A client said Leave for `job`, or (job empty) its connection ended."""

    conn: Count
    job: Word = ""


class ClientDeclined(Message, frozen=True):
    """A client said Decline."""

    conn: Count
    client: Name
    job: Name
    round: Count
    reason: Text = ""


class ClientEvaluated(Message, frozen=True):
    """A client said Evaluated."""

    conn: Count
    client: Name
    job: Name
    round: Count
    weight: Weight
    metrics: Metrics


class Disconnected(Message, frozen=True):
    """The gateway has ended a client's connection, because of `reason`: for the node's log.  ClientLeft follows.

    `client` is empty where none had said Hello; `who` is its address, or its account on this machine.
    """

    conn: Count
    client: Word
    reason: Text
    who: Text = ""


class GatewayLost(Message, frozen=True):
    """An agent's gateway has ended, and all its clients' connections with it."""


class Admit(Message, frozen=True):
    """A client's Submit that passed the gateway's checks against the job's schema asks for a slot.

    `direct`: the client will write to the slot itself.  `fold` is named by a host of folds, who may bring `client`'s.
    """

    conn: Count
    client: Name
    job: Name
    round: Count
    weight: Weight
    metrics: Metrics = msgspec.field(default_factory=dict)
    direct: bool = False
    fold: Count | msgspec.UnsetType = msgspec.UNSET
    ticket: Ticket | msgspec.UnsetType = msgspec.UNSET


class Sealed(Message, frozen=True):
    """The update named by a Granted key is checked and sealed in the arena; `digest` is its checksum (0: not told)."""

    conn: Count
    key: KeyBytes
    received_bytes: Count
    digest: Bits64 = 0


class Aborted(Message, frozen=True):
    """The update of a Granted key will not come (disconnected, or bad content: `reason`).

    `writing`: a direct client lives and may not have heard that yet; it may still write to the slot.
    """

    conn: Count
    key: KeyBytes
    reason: Text
    writing: bool = False


class Progress(Message, frozen=True):
    """So much of a followed update is in its slot, from the front; not yet checked."""

    key: KeyBytes
    received_bytes: Count


class WantModel(Message, frozen=True):
    """A client asks for the model that a round starts from (with a `part` a node, for a copy); `direct`: to map it;
    `lend`: to have it mapped for as long as it likes."""

    conn: Count
    job: Name
    round: Count
    part: Count | None = None
    direct: bool = False
    lend: bool = False


class ModelSent(Message, frozen=True):
    """The bytes of a granted model have been sent (or the client is gone): the pin may go.  `conn` 0: a loan's."""

    conn: Count
    key: KeyBytes
    sent_bytes: Count


class GatewayStats(Message, frozen=True):
    """The gateway's totals, the answer to AskStats."""

    received_bytes: Count
    sent_bytes: Count
    connections: Count
    cpu_s: NotNegative


class Offered(Message, frozen=True):
    """Another node's gateway says Offer: asks for room.  Then Sealed or Aborted, as for an update."""

    conn: Count
    number: Count
    epoch: Count
    branch: Count
    members: Count
    data_bytes: Count
    meta_bytes: Count
    secret: Secret = ""


class CarryEnded(Message, frozen=True):
    """The partial of a Carry is at the other node (`error` empty), or not; `sent_bytes` went over the wire."""

    key: KeyBytes
    error: Text
    sent_bytes: Count


class FoldAsked(Message, frozen=True):
    """The host of a session says OpenFold, CloseFold or CancelFold."""

    conn: Count
    job: Name
    fold: Count
    what: Literal["open", "close", "cancel"]
    expected: Count = 0


class ModelPut(Message, frozen=True):
    """The host of a session asks for a slot for the model that the next fold starts from, or for the rule's `state`."""

    conn: Count
    job: Name
    round: Count
    direct: bool = False
    state: Word = ""


class SessionEnded(Message, frozen=True):
    """The host of a session says EndSession."""

    conn: Count
    job: Name


class PartTaken(Message, frozen=True):
    """A client shows a ticket that has not expired."""

    conn: Count
    client: Name
    job: Name
    fold: Count
    ticket: Ticket


class SessionAsked(Message, frozen=True):
    """A client that may do so says HostSession: `lifld` makes the session if it is not there."""

    conn: Count
    job: Name
    expected: FoldSize
    tensors: Tensors
    rule: RuleName
    options: dict[str, Any]
    rule_folder: ConfigPath
    states: StateNames
    secret: Secret
    trainable: TrainablePatterns = ()
    reproducible: bool = False
    revoked: RevokedTicketList = ()


class FetchEnded(Message, frozen=True):
    """The model of a Fetch is sealed in the object (`error` empty), or not; `received_bytes` came over the wire."""

    key: KeyBytes
    error: Text
    received_bytes: Count


class AskPulse(Message, frozen=True):
    """A client asks whether this node is there.  Answered by Pulse, unless it has no coordinator."""


FromGateway = (
    GatewayReady
    | AskPulse
    | Greeted
    | ClientRefused
    | ClientJoined
    | ClientLeft
    | ClientDeclined
    | ClientEvaluated
    | Disconnected
    | Admit
    | Sealed
    | Aborted
    | Progress
    | WantModel
    | ModelSent
    | sm.ModelServed
    | GatewayStats
    | Offered
    | SessionAsked
    | PartTaken
    | FoldAsked
    | ModelPut
    | SessionEnded
    | tm.RevocationAsked
    | CarryEnded
    | FetchEnded
)


# ---- lifld → gateway -------------------------------------------------------------------------------------------


class JobSchema(Message, frozen=True):
    """The gateway may admit updates of this job; `number` is the job's in the arena's table.

    `options` go to the clients that are selected.  `bytes_per_s` of its updates and models may come and go; 0: any.
    `patterns` name what is not averaged.  `reproducible`: weights are whole numbers.  `listed` are the clients that may
    have its models; left out: all.
    """

    job: Name
    number: Count
    tensors: Tensors
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    bytes_per_s: Annotated[int, msgspec.Meta(ge=0, le=BYTES_PER_S_MAX)] = 0
    patterns: Patterns = Patterns()
    reproducible: bool = False
    listed: Told = msgspec.UNSET


class JobForget(Message, frozen=True):
    """The job has ended; its schema may be dropped.  Connections stay."""

    job: Name


class Granted(Message, frozen=True):
    """The slot for the client's update; `member` is the bytes for the object's meta region."""

    conn: Count
    key: KeyBytes
    member: Annotated[bytes, msgspec.Meta(max_length=CONTRIBUTION_BYTES_MAX)]


class ModelGranted(Message, frozen=True):
    """The model object to send; pinned until ModelSent.  `lent`: the two descriptors for the client come along."""

    conn: Count
    job: Name
    round: Count
    key: KeyBytes
    lent: bool = False


class FollowUpdate(Message, frozen=True):
    """Tell by Progress, from now on, how far the update of a Granted key is."""

    conn: Count
    key: KeyBytes


class TellClient(Message, frozen=True):
    """Send `message` (a ToClient struct, packed by `protocol.client.packed`) to a client of this node's gateway.

    The coordinator says it to the agent of the client's node, the agent to its gateway.  With `selects` it is a
    Selected of that job, and the gateway adds what is the same for all: tensors, or their digest, and options.
    """

    conn: Count
    message: msgspec.Raw
    selects: Word = ""


class HangUp(Message, frozen=True):
    """Close a connection; 0: all of them.  Of what was granted or joined over each it is told as for any other end.

    `after_updates`: one over which an update is under way is closed as soon as that is answered.
    """

    conn: Count = 0
    after_updates: bool = False


class Revoked(Message, frozen=True):
    """The certificates that are not believed any more, in the place of what the gateway had: their connections end."""

    entries: Revocations


class BearersTold(Message, frozen=True):
    """The bearer tokens of the cluster, in the place of what the gateway had: connections of those not valid end."""

    entries: Bearers


class AskStats(Message, frozen=True):
    """Asks for GatewayStats."""


class Pulse(Message, frozen=True):
    """This node takes part in its cluster; `gateways` are those of other nodes."""

    gateways: Gateways = ()


class SegmentOpened(Message, frozen=True):
    """Segment `number` of the arena is in use from now on; its descriptor came along.  The gateway opens no file."""

    number: Count


class SegmentClosed(Message, frozen=True):
    """No object is in segment `number` of the arena any more, nor will be."""

    number: Count


class ClientCame(Message, frozen=True):
    """A client has come by HTTP, and what it says comes by the socket whose descriptor came along.

    `who` is at the other end.  The HTTP door says it to `lifld`, and that to the gateway; `peer` is None where nobody
    is asked for a certificate, and of who comes `by_ticket`, which is still to be shown.
    """

    who: Who
    peer: ShownPeer | None = None
    by_ticket: bool = False


class Drain(Message, frozen=True):
    """Accept no more connections, end those there are, and exit 0."""


class Carry(Message, frozen=True):
    """Bring the sealed partial `key` to the gateway at `address` (HOST:PORT), by Offer; answered by CarryEnded.

    Until that answer the object must stay.  A later Carry of the same key takes the place of the earlier one, which is
    then not answered; so does a later Fetch.
    """

    key: KeyBytes
    address: Address
    number: Count
    epoch: Count
    branch: Count
    secret: Secret = ""


class Fetch(Message, frozen=True):
    """Get the model that round `round` of `job` starts from at `address`, and seal it; answered by FetchEnded.

    With a `part`: for a copy (`cm.GetModel`).
    """

    key: KeyBytes
    address: Address
    job: Name
    round: Count
    part: Count | None = None


class EndFetch(Message, frozen=True):
    """Let a fetch be: what it was for is elsewhere now, and who is asked may be silent; answered by its FetchEnded."""

    key: KeyBytes


ToGateway = (
    JobSchema
    | JobForget
    | Granted
    | FollowUpdate
    | ModelGranted
    | TellClient
    | HangUp
    | Revoked
    | BearersTold
    | AskStats
    | Pulse
    | SegmentOpened
    | SegmentClosed
    | ClientCame
    | Drain
    | Carry
    | Fetch
    | EndFetch
    | sm.ModelChanged
    | tm.TicketNews
)
