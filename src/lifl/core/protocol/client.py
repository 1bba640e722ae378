"""What clients and the gateway say to each other.

An upload is two steps so that a refusal costs no bandwidth: `Submit` is answered by `Go`, then the body (exactly
`data_bytes` raw bytes in the layout's order) follows and is answered by `Accepted`.  Another node's gateway is a client
like any other.

A peer says in Hello and Welcome what it `knows` beyond the first version of this protocol, and is sent nothing else:
what has its default value there is left out, so that an earlier version understands both.

A schema may be long, so who knows `DIGESTS` is told the tensors of a job once over each connection; from then on their
digest (`schema.Layout.digest`) stands for them, in both directions, and `tensors` is empty.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from lifl.core.fields import (
    Absent,
    Address,
    AnnouncedMetrics,
    Bits64,
    Count,
    Digest,
    FieldPath,
    Gateways,
    Integer,
    KnownWords,
    Message,
    Name,
    Properties,
    RetryAfter,
    RoundOrNone,
    Seconds,
    SecondsLeft,
    Secret,
    Tensors,
    Text,
    Ticket,
    TrainablePatterns,
    Word,
)
from lifl.core.limits import CHAIN_BYTES_MAX, REASON_BYTES_MAX
from lifl.core.protocol import folds as fm
from lifl.core.protocol import tickets as tm
from lifl.core.protocol.body_ranges import BodyRange, Streams
from lifl.core.protocol.versions import Spoken
from lifl.core.trust.ticket import HOST_AWAY
from lifl.core.trust.tokens import TokenNumber, TokenSecret

SPOKEN = Spoken("protocol of clients", first=1)
PROTOCOL_VERSION = SPOKEN.version
DECLINE = "decline"
"""The feature of a node that knows Decline."""
DIGESTS = "digests"
"""The feature of a peer that knows a digest to stand for tensors."""
PING = "ping"
"""The feature of a peer that knows Ping and Pong."""
COOKIE = "cookie"
"""The feature of a client that knows Challenge."""
FOLDS = "folds"
"""The feature of a node that knows sessions of folds."""
SEGMENTS = "segments"
"""The feature of a client that writes to the segment whose descriptor came along with the last Go, as jobs have each
their own."""
ABSENT = "absent"
"""The feature of a peer that knows updates which lack some of the tensors."""
PROPERTIES = "properties"
"""The feature of a node that knows what clients say of themselves when they join."""
LOANS = "loans"
"""The feature of a node that lends models."""
KNOWS = (DECLINE, DIGESTS, PING, COOKIE, FOLDS, SEGMENTS, ABSENT, PROPERTIES, LOANS)
"""What this version knows."""

# ---- client → gateway ------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, omit_defaults=True):
    """The first frame of a connection.  `direct`: the client can fill its slot itself (AF_UNIX only)."""

    version: Integer
    client: Name
    direct: bool = False
    knows: KnownWords = ()


class Prove(Message, frozen=True):
    """The answer to Challenge: `proof` shows that the client has read the cookie (`trust/cookie.py`)."""

    proof: Secret


class AskRoots(Message, frozen=True):
    """Asks for the authority's roots, as the only frame of a connection that is not verified: answered by Roots.

    Who has a bearer token compares them with the digest in it, before it comes again and tells its secret.
    """


class ShowToken(Message, frozen=True):
    """Comes before Hello, of who has no certificate: the bearer token as whose bearer it says Hello."""

    token: TokenNumber
    secret: TokenSecret

    def __repr__(self) -> str:
        return f"ShowToken({self.token})"  # its secret is shown nowhere


class Join(Message, frozen=True):
    """Takes part in `job`, and waits to be selected.  `holding`: the round whose update the client still keeps.

    `connected_ns`, a clock of the client's, means something to earlier versions only: of two connections that claim one
    name, the one whose Join comes last has it.
    `properties` are what the client says of itself, to who knows `PROPERTIES`.
    """

    job: Name
    holding: Count | None = None
    connected_ns: Count = 0
    properties: Properties | msgspec.UnsetType = msgspec.UNSET


class GetModel(Message, frozen=True):
    """Asks for the model that round `round` starts from.  `checked`: Checksums are to follow the bytes.

    With the right `digest` the answer leaves the tensors out.  `direct`: who may write to its slot itself reads the
    model where it is, and says ModelRead.  `lend`: it would read it there for as long as it likes, and asks on.
    With `part` another node asks for a copy: of the model (0), or of one of the rule's states, counted from 1; also of
    a round that is not committed yet.
    """

    job: Name
    round: Count
    checked: bool = False
    digest: Digest | msgspec.UnsetType = msgspec.UNSET
    direct: bool | msgspec.UnsetType = msgspec.UNSET
    part: Count | msgspec.UnsetType = msgspec.UNSET
    streams: Streams | msgspec.UnsetType = msgspec.UNSET
    lend: bool | msgspec.UnsetType = msgspec.UNSET


class ModelRead(Message, frozen=True):
    """The client is done with the model that it reads where it is."""

    job: Name
    round: Count


class Submit(Message, frozen=True):
    """Announces an update of `data_bytes` bytes: answered by Go, Accepted (it is known already), Busy or Refusal.

    Its tensors are named by themselves, or by their `digest`.  The host of a session of folds says by `client` whose
    update it brings, and by `fold` for which of its folds; who has a `ticket` for one shows that.

    `absent` are the tensors that the update lacks, a bit for each, the lowest of the first byte first: only in a job
    whose selection told `trainable`.  Their bytes travel all the same, and count for nothing.
    """

    job: Name
    round: Count
    weight: float
    data_bytes: Count
    tensors: Tensors
    metrics: AnnouncedMetrics = msgspec.field(default_factory=dict)
    digest: Digest | msgspec.UnsetType = msgspec.UNSET
    client: Name | msgspec.UnsetType = msgspec.UNSET
    fold: Count | msgspec.UnsetType = msgspec.UNSET
    ticket: Ticket | msgspec.UnsetType = msgspec.UNSET
    absent: Absent | msgspec.UnsetType = msgspec.UNSET
    streams: Streams | msgspec.UnsetType = msgspec.UNSET


class Filled(Message, frozen=True, omit_defaults=True):
    """The client has written the slot of its `Go(direct=True)` itself.

    `checksum` is what `shm/checksum` makes of the bytes, if it has looked at them, and all floats are finite; else 0.
    """

    job: Name
    round: Count
    checksum: Bits64 = 0


class Leave(Message, frozen=True):
    """Takes part no longer."""

    job: Name


class Decline(Message, frozen=True):
    """The client takes part in the job, and not in this round, for which it was selected: another is to be."""

    job: Name
    round: Count
    reason: Text = ""


class Evaluated(Message, frozen=True):
    """What a client has found that was selected to evaluate the model of `round`: answered by Accepted or Refusal."""

    job: Name
    round: Count
    weight: float
    metrics: AnnouncedMetrics


class Offer(Message, frozen=True, omit_defaults=True):
    """Another node's gateway has a partial of `data_bytes` bytes, with `meta_bytes` of members behind them.

    Answered by Go (send both, then Checksums), Accepted (it is here already), Busy or Refusal.  (number, epoch, branch)
    is its identity, `secret` what its coordinator told the node with the branch.
    """

    number: Count
    epoch: Count
    branch: Count
    weight: float
    members: Count
    data_bytes: Count
    meta_bytes: Count
    secret: Secret = ""
    streams: Streams = 1


class Checksums(Message, frozen=True):
    """What `shm/checksum` makes of the bytes that were just sent: it follows them, so that one pass computes and sends.

    Either way: after the body of an Offer, and after a model that was asked for `checked`.
    """

    data: Bits64
    meta: Bits64 = 0


class Ping(Message, frozen=True):
    """Asks for Pong: is the node there?"""


FromClient = (
    AskRoots
    | ShowToken
    | tm.ShowTicket
    | Hello
    | Prove
    | Join
    | GetModel
    | ModelRead
    | Submit
    | Filled
    | Leave
    | Decline
    | Evaluated
    | Offer
    | BodyRange
    | Checksums
    | Ping
    | fm.TakePart
    | fm.HostSession
    | fm.OpenFold
    | fm.PutModel
    | fm.CloseFold
    | fm.CancelFold
    | fm.EndSession
    | tm.RevokeTicket
)


# ---- gateway → client ------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, omit_defaults=True):
    """The answer to Hello.  `knows` is told to who said there what it knows itself, `streams` to who knows STREAMS."""

    version: Integer
    node: Word
    direct: bool = False
    knows: KnownWords = ()
    streams: Streams = 1


class Roots(Message, frozen=True):
    """The roots of the authority (PEM), the newest first: to be believed by nobody without a digest."""

    roots: Annotated[str, msgspec.Meta(max_length=CHAIN_BYTES_MAX)]


class Challenge(Message, frozen=True):
    """The answer to Hello where the node takes clients of its own account alone: who has read `cookie` can prove it.

    `cookie` is a path on the node's machine.  Answered by Prove, and that by Welcome or Refusal.
    """

    nonce: Secret
    cookie: Text


class Pong(Message, frozen=True):
    """The answer to Ping: this node takes part in its cluster.  It comes between other messages, in any order.

    `next_s`: when to ask again at the earliest.  `gateways` are those of other nodes that live, to go to when this one
    is silent.
    """

    next_s: Seconds
    gateways: Gateways = ()


class Selected(Message, frozen=True):
    """The client is to train in this round.  `tensors` is the model's schema; `deadline_s` the seconds left.

    `gateway` (HOST:PORT) is where to get the model and to submit; empty: over this connection.  On its way to the
    client's gateway it has no `tensors`, and of `options` those alone that are this round's or this client's own: the
    rest is added there (`gateway.TellClient.selects`).
    `trainable` are the job's patterns, told to who knows `ABSENT`: an update may lack some of the tensors.
    Who has a ticket is told the `fold`, and which one the session had open before it, `behind`, if the node knows.
    With the `kind` ``evaluate``, told to who said that it evaluates, the client is not to train: it gets the model that
    `round` has committed, which is the one that the next round starts from, and says Evaluated.
    """

    job: Name
    round: Count
    deadline_s: SecondsLeft
    tensors: Tensors
    data_bytes: Count
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    gateway: Address = ""
    digest: Digest | msgspec.UnsetType = msgspec.UNSET
    trainable: TrainablePatterns | msgspec.UnsetType = msgspec.UNSET
    fold: Count | msgspec.UnsetType = msgspec.UNSET
    kind: Literal["evaluate"] | msgspec.UnsetType = msgspec.UNSET
    behind: Count | msgspec.UnsetType = msgspec.UNSET


class Model(Message, frozen=True):
    """Exactly `data_bytes` raw bytes of the model follow this frame, in the layout's order.

    With an `offset` none follow: they are there in the job's segment, whose descriptor came along, until the client
    says ModelRead; if it is lent two descriptors came, and it is there as long as either is open, or mapped.
    `checksum` is then what the model was sealed with; 0: it has none.
    """

    job: Name
    round: Count
    tensors: Tensors
    data_bytes: Count
    digest: Digest | msgspec.UnsetType = msgspec.UNSET
    offset: Count | msgspec.UnsetType = msgspec.UNSET
    checksum: Bits64 | msgspec.UnsetType = msgspec.UNSET
    transfer: Secret | msgspec.UnsetType = msgspec.UNSET


class Go(Message, frozen=True):
    """Send the body now.  With `direct`, the descriptor of the job's segment came along: write at `offset`
    and say Filled."""

    job: Name
    round: Count
    direct: bool = False
    offset: Count = 0
    transfer: Secret | msgspec.UnsetType = msgspec.UNSET


class Accepted(Message, frozen=True):
    """The update is sealed in the arena and in the ledger; it will be counted once or expire with a reason."""

    job: Name
    round: Count


class Busy(Message, frozen=True):
    """The arena is full: nothing was taken; ask again after `retry_after_s`."""

    job: Name
    round: Count
    retry_after_s: RetryAfter


USE_GATEWAY = "use-gateway"
"""The code of a Refusal that means: ask the gateway at `field` (HOST:PORT) instead."""


REPLACED = "replaced"
"""The code of a Refusal that means: the client has come over another connection, and this one is of no use."""


NO_PLACE = ("too-many-connections", "quota", HOST_AWAY)
"""The codes of a refusal to take a connection in: another time there may be a place."""


EVALUATION_OVER = "evaluation-over"
"""The code of a refusal that means: what a client finds of that model is not waited for any more."""


SPOILT = "spoilt"
"""The code of a refusal after the fact: the client is to forget its update in the round, which cannot be aggregated."""


class Refusal(Message, frozen=True):
    """A request is answered "no"; the connection stays usable unless code is ``protocol``."""

    code: Word
    field: FieldPath
    text: Text
    job: Word = ""
    round: RoundOrNone = -1


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
    status: Word
    reason: Text = ""


ToClient = (
    Welcome
    | Challenge
    | Roots
    | Pong
    | Selected
    | Model
    | Checksums
    | Go
    | Accepted
    | Busy
    | Refusal
    | Committed
    | RoundOver
    | JobOver
    | fm.SessionReady
    | fm.FoldOpen
    | fm.FoldClosing
    | fm.FoldAccepted
    | fm.FoldDone
    | fm.FoldOver
    | tm.TicketRevoked
)


def packed(message: Message) -> msgspec.Raw:
    """Return the bytes of a `ToClient` as they travel within other messages, from maker to client's connection."""
    return msgspec.Raw(msgspec.msgpack.encode(message))


def with_short_reason(message: Message) -> Message:
    """Return the message as it is told to all clients of a round: they may be many, and a reason long."""
    if not isinstance(message, RoundOver | JobOver) or len(message.reason.encode()) <= REASON_BYTES_MAX:
        return message
    cut = message.reason.encode()[: REASON_BYTES_MAX - 3].decode(errors="ignore")
    return msgspec.structs.replace(message, reason=f"{cut}...")


def packed_open(message: Message, **raw: bytes) -> bytes:
    """Return the bytes of a message up to where its `tensors`, packed, are to follow: they need no copy for each.

    `raw` are fields that are packed already.
    """
    fields = {name: getattr(message, name) for name in message.__struct_fields__ if name != "tensors"}
    present = {name: value for name, value in fields.items() if value is not msgspec.UNSET}
    present |= {name: msgspec.Raw(value) for name, value in raw.items()}
    return msgspec.msgpack.encode({"type": type(message).__name__, **present, "tensors": msgspec.Raw(b"")})


_TO_CLIENT = msgspec.msgpack.Decoder(ToClient)


def unpacked(message: msgspec.Raw | bytes) -> Message:
    """Return the `ToClient` in `message`.  Raise `msgspec.DecodeError` when it is none."""
    unpacked_: Message = _TO_CLIENT.decode(message)
    return unpacked_
