"""What nodes say to each other on the control channel, beside orders and reports (`core/orders.py`).

An agent dials the coordinator, says PeerHello, and gets PeerWelcome, or PeerRedirect when it asked another member.  From
then on the coordinator's orders go one way, the agent's reports and its clients' events the other; both send Heartbeat
every `HEARTBEAT_S`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from lifl.core import messages as m
from lifl.core import orders as o
from lifl.core.messages import Count, Message, Text

PEER_VERSION = 1
NODES_MAX = 1_000
HEARTBEAT_S = 1.0
SUSPECT_S = 3.0
DEAD_S = 6.0
Address = Annotated[str, msgspec.Meta(max_length=280)]


class PeerHello(Message, frozen=True):
    """The first frame of a node that joins.  `incarnation` counts the lives of its daemon."""

    version: int
    node: Count
    incarnation: Count
    control: Address
    gateway: Address
    capacity: float
    arena_bytes: Count
    workers_max: int


class PeerWelcome(Message, frozen=True):
    """The coordinator takes the node in.  Its answer is an Inventory."""

    version: int
    node: Count
    control: Address
    gateway: Address


class PeerRedirect(Message, frozen=True):
    """This member does not coordinate: `control` does."""

    control: Address


class PeerRefusal(Message, frozen=True):
    """The node cannot join: another version, or too many nodes."""

    text: Text


class Heartbeat(Message, frozen=True):
    """Alive.  From an agent also its load: k in updates per second, E in seconds, and what it has left."""

    rate_per_s: float = 0.0
    execution_s: float = 0.0
    arena_used_bytes: Count = 0
    workers: Count = 0
    tree: tuple[dict[str, Any], ...] = ()


class BranchHeld(msgspec.Struct, frozen=True):
    """One branch that an agent has: its members, and whether its root is sealed."""

    number: int
    epoch: int
    members: tuple[tuple[str, float, dict[str, float]], ...]
    closed: bool
    sealed: bool


class Inventory(Message, frozen=True):
    """What an agent has when it (re)joins: its jobs' numbers, and its branches."""

    jobs: tuple[int, ...]
    branches: tuple[BranchHeld, ...]


class Leaving(Message, frozen=True):
    """The node goes down in good order."""


ToAgent = PeerWelcome | PeerRedirect | PeerRefusal | Heartbeat | o.Order
ToCoordinator = PeerHello | Heartbeat | Inventory | Leaving | m.ClientJoined | m.ClientLeft | m.Admit | o.Report
