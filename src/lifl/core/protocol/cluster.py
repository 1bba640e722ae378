"""What nodes say to each other on the control channel, beside orders and reports (`protocol/commands.py`).

The nodes of a cluster form a star around the coordinator.  An agent dials and says PeerHello; the answer (`Greeting`)
is PeerWelcome, or PeerRedirect from a member that does not coordinate, PeerRejoin for a life that counts as over, or
PeerRefusal.  After PeerWelcome the coordinator's orders go one way, the agent's Inventory, reports and clients' events
the other; both say Heartbeat every `HEARTBEAT_S`.  With its heartbeats the coordinator tells every agent what changed
among the members, `NEWS_MAX` of them at a time, so that a thousand nodes that come at once do not cost a million
frames.  Whatever is sent to a node that is not connected is lost: the next Inventory sets the books right.

Only PeerHello is read from a stranger, so `read_hello` is strict: at most `GREETING_BYTES_MAX`, the version before
anything else (`versions.py`), every field in its range.  What the next version may have beyond is left out.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

import msgspec

from lifl.core.config.values import split_address
from lifl.core.errors import ConfigError, RemoteFault
from lifl.core.fields import (
    Address,
    ArenaBytes,
    Bits64,
    Capacity,
    Count,
    Incarnation,
    Integer,
    KnownWords,
    Message,
    Name,
    NodeLabels,
    Path,
    Real,
    WorkersMax,
)
from lifl.core.limits import (
    DEADLINE_S_MAX,
    MEMBERS_PER_FRAME_MAX,
    NEWS_MAX,
    OBJECTS_MAX,
    RATE_PER_S_MAX,
    REFUSAL_CHARS_MAX,
    REMOVED_COPIES_MAX,
    TREE_LINES_MAX,
)
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.versions import Spoken
from lifl.core.trust.bearers import Bearers
from lifl.core.trust.revocation import Revocations

SPOKEN = Spoken("control channel", first=4)
"""To 0.1 what grows goes in pages, a partial is a mean in float64 and exact sums of integers of 192 bits."""
PEER_VERSION = SPOKEN.version
SECRETS = "offer-secret"
"""The word of a node that is told the secrets of its branches, and says them (`coordinator/offer_secrets.py`)."""
QUOTAS = "quotas"
"""The word of a node that knows of a job's quotas."""
JOURNAL = "journal"
"""The word of a node that stores updates on its disk before they are accepted, where a job wants that."""
COORDINATES = "coordinates"
"""The word of a node that may come to coordinate: it is asked whether it sees a job's folder."""
DRAIN = "drain"
"""The word of a node that can be drained, and says in its Inventory whether it is."""
BEARERS = "bearers"
"""The word of a node that knows of bearer tokens."""
OWNERS = "owners"
"""The word of a node that is told whose a job is."""
COPIES = OWNERS
"""That of a node that can keep copies of committed models, and serve them: it came with the one before, and a hello has
room for `KNOWN_WORDS_MAX` words, at the earlier release's nodes, too.
"""
TRAINABLE = "trainable"
"""The word of a node that knows of updates which lack some of a job's tensors."""
PROPERTIES = "properties"
"""The word of a node that knows what clients say of themselves, and evaluations: it is told so in PeerWelcome, too."""
KEEPS = PROPERTIES
"""That of a node that is told which copies of models stay: it came with the one before."""
REMOVES = "removes"
"""The word of a node that is told which jobs were forgotten with their models: its copies of these go."""
LABELS = REMOVES
"""That of a coordinator that is told the labels of a node, in its Inventory: it came with the one before."""
HOSTED = "hosted"
"""The word of a coordinator that is told what a node's own sessions of folds have of its arena, in its heartbeats."""
LISTED = HOSTED
"""That of a node that is told which clients a job lists: it came with the one before."""
KNOWS = (SECRETS, QUOTAS, JOURNAL, DRAIN, BEARERS, OWNERS, TRAINABLE, PROPERTIES, REMOVES, HOSTED)
"""What a node of this version knows (`PeerHello.knows`)."""
EVERY_WORD = (*KNOWS, COORDINATES)
LATER = (PROPERTIES, REMOVES, HOSTED)
"""Those of them that are left out to a member which takes no more than 8."""
HEARTBEAT_S = 1.0
SUSPECT_S = 3.0
DEAD_S = 6.0
MemberStateName = Literal["alive", "suspect", "dead", "left"]


class PeerHello(Message, frozen=True, omit_defaults=True):
    """The first frame of a node that joins.

    `incarnation` counts the lives of its daemon; `capacity` is MC in updates, `control` and `gateway` are HOST:PORT.
    `knows` are words for what it knows beyond version 1; a member that knows no such field refuses it by its name, and
    the node comes again without.
    """

    version: Integer
    node: Bits64
    incarnation: Incarnation
    control: Address
    gateway: Address
    capacity: Capacity
    arena_bytes: ArenaBytes
    workers_max: WorkersMax
    knows: KnownWords = ()


class CommandHello(Message, frozen=True):
    """The first frame of an operator's or a reader's command line; its requests (`protocol/cli.py`) follow."""

    version: Integer


class PeerWelcome(Message, frozen=True, omit_defaults=True):
    """The coordinator takes the node in.  Its answer is an Inventory.

    `term` is the coordinator's, where it moves.  `knows` is told to who said `PROPERTIES`: what the coordinator knows.
    """

    version: Integer
    node: Bits64
    control: Address
    gateway: Address
    term: Count = 0
    knows: KnownWords = ()


class PeerRedirect(Message, frozen=True):
    """This member does not coordinate: `control` does."""

    control: Address


class PeerRejoin(Message, frozen=True):
    """This life of the node was declared dead, or has left: what it has does not count any more.

    It may come as a new one, with an incarnation above `above`.
    """

    above: Incarnation


class PeerRefusal(Message, frozen=True):
    """The node cannot join; `retry`: another time it may, with nothing changed."""

    text: Annotated[str, msgspec.Meta(max_length=REFUSAL_CHARS_MAX)]
    retry: bool = False


class PeerMember(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member as the coordinator sees it; `since_unix_s` is when it came into this state."""

    node: Bits64
    incarnation: Incarnation
    state: MemberStateName
    since_unix_s: Real
    control: Address
    gateway: Address
    capacity: Capacity
    arena_bytes: ArenaBytes
    workers_max: WorkersMax


class PeerMembers(Message, frozen=True):
    """Members that changed.  `first`: what the agent believed before is void; the first member is the coordinator."""

    members: Annotated[tuple[PeerMember, ...], msgspec.Meta(max_length=NEWS_MAX)]
    first: bool = False


class Revoked(Message, frozen=True):
    """The certificates that are not believed any more, in the place of what the agent had; where they are secured.

    Where the coordinator moves both sides say it, and have what either had.
    """

    entries: Revocations


class BearersTold(Message, frozen=True):
    """The bearer tokens of the cluster, as Revoked: to and from nodes that know of them (`BEARERS`)."""

    entries: Bearers


class Heartbeat(Message, frozen=True, omit_defaults=True):
    """Alive.  From an agent also its load (MC in updates, k per second, E in seconds), and its branches' tasks.

    `hosted_bytes` of its arena no job can have: its own sessions of folds, and loans; told to who knows `HOSTED`.
    """

    capacity: Capacity = 0.0
    rate_per_s: Annotated[float, msgspec.Meta(ge=0, le=RATE_PER_S_MAX)] = 0.0
    execution_s: Annotated[float, msgspec.Meta(ge=0, le=DEADLINE_S_MAX)] = 0.0
    arena_used_bytes: ArenaBytes = 0
    workers: Count = 0
    tree: Annotated[tuple[dict[str, Any], ...], msgspec.Meta(max_length=TREE_LINES_MAX)] = ()
    hosted_bytes: ArenaBytes = 0


class SeeFolder(Message, frozen=True):
    """Say whether you see a job's folder, claimed by this owner: you may have to read its models one day."""

    folder: Path
    owner: Bits64
    number: Count


class CopiesRemoved(Message, frozen=True):
    """Remove your copies of the models of these jobs, by number and name: they were forgotten with their models.

    The last ones are told, to each node that comes and whenever one is added.  `owner` is whose jobs they are.
    """

    owner: Bits64
    jobs: Annotated[tuple[tuple[Count, Name], ...], msgspec.Meta(max_length=REMOVED_COPIES_MAX)]


class FolderSeen(Message, frozen=True):
    """What a node found; `fault` is empty when it sees the folder, and may write there."""

    number: Count
    fault: Annotated[str, msgspec.Meta(max_length=REFUSAL_CHARS_MAX)] = ""


class BranchHeld(msgspec.Struct, frozen=True):
    """One branch that an agent has: the members that are sealed, those that are granted, and whether it is closed."""

    number: Count
    epoch: Count
    branch: Count
    members: o.Contributions
    granted: o.Contributions
    closed: bool


class Inventory(Message, frozen=True, omit_defaults=True):
    """What an agent has when it (re)joins: the numbers of its jobs, and its branches.  From here both sides go on.

    `orphans` are jobs of which an earlier life of the node has left something.  `drains`: it was told to take no
    clients, by whoever coordinated then.  `more`: pages follow (`pages.py`).  `labels` are told to who knows `LABELS`.
    """

    jobs: Annotated[tuple[Count, ...], msgspec.Meta(max_length=OBJECTS_MAX)] = ()
    branches: Annotated[tuple[BranchHeld, ...], msgspec.Meta(max_length=MEMBERS_PER_FRAME_MAX)] = ()
    orphans: Annotated[tuple[Count, ...], msgspec.Meta(max_length=OBJECTS_MAX)] = ()
    more: bool = False
    drains: bool = False
    labels: NodeLabels = msgspec.field(default_factory=dict)


class Draining(Message, frozen=True):
    """The node goes down as soon as its partials are at the top: give it nothing new."""


class Leaving(Message, frozen=True):
    """The node goes down in good order; the coordinator closes the connection when it has noted it."""


Greeting = PeerWelcome | PeerRedirect | PeerRejoin | PeerRefusal
ToAgent = PeerMembers | Heartbeat | Revoked | BearersTold | SeeFolder | CopiesRemoved | o.Order
ToCoordinator = (
    Heartbeat
    | FolderSeen
    | Revoked
    | BearersTold
    | Inventory
    | Draining
    | Leaving
    | gm.ClientJoined
    | gm.ClientLeft
    | gm.ClientDeclined
    | gm.ClientEvaluated
    | gm.Admit
    | gm.GatewayLost
    | o.Report
)


class _AnyHello(msgspec.Struct, tag_field="type", tag="PeerHello"):
    """What a PeerHello of every version has."""

    version: int


def check_version(version: int) -> None:
    """Raise `RemoteFault`, with the remedy, when a peer speaks a version that this node cannot work with."""
    if fault := SPOKEN.fault(version, "this node", "the peer"):
        raise RemoteFault(fault)


def read_hello(body: msgspec.Raw) -> PeerHello:
    """Return the PeerHello in a frame's body.  Raise `RemoteFault`, with what is to be told to the peer."""
    try:
        version = msgspec.msgpack.decode(body, type=_AnyHello).version
        check_version(version)
        hello = _of_next_version(body) if version > PEER_VERSION else msgspec.msgpack.decode(body, type=PeerHello)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RemoteFault(f"the first frame on a control port must be a PeerHello: {error}") from error
    for name in ("control", "gateway"):
        try:
            _host, port = split_address(getattr(hello, name), name)
        except ConfigError as error:
            raise RemoteFault(f"PeerHello.{error}") from error
        if port == 0:
            raise RemoteFault(f"PeerHello.{name}: no node can connect to port 0")
    return hello


def _of_next_version(body: msgspec.Raw) -> PeerHello:
    """Return what this version knows of the PeerHello of the next one.  Raise `msgspec.ValidationError`."""
    fields = msgspec.msgpack.decode(body, type=dict[str, Any])
    known = {name: fields[name] for name in ("type", *PeerHello.__struct_fields__) if name in fields}
    return msgspec.msgpack.decode(msgspec.msgpack.encode(known), type=PeerHello)


def reachable(address: str, host: str) -> str:
    """Return `address` (HOST:PORT) for others: `host`, where it was met, stands for all of a machine's addresses."""
    own, port = split_address(address)
    try:
        if not ipaddress.ip_address(own).is_unspecified:
            return address
        met = ipaddress.ip_address(host)
    except ValueError:
        return address  # a name
    if isinstance(met, ipaddress.IPv6Address):
        met = met.ipv4_mapped or met
    return f"[{met}]:{port}" if met.version == 6 else f"{met}:{port}"
