"""Who is in the cluster, as the coordinator keeps it, with the clock as an argument.

A *life* of a node is (node id, incarnation); it goes through `TRANSITIONS` and never comes back from its end.  Silence
of `suspect_s`, or a connection that broke, makes it suspect; a word from it, or a new connection, clears it; silence
of `dead_s` ends it.  A node that was declared dead may still run, and have what was asked for again elsewhere: it must
come as a new life: `Rejoin`.  A higher incarnation ends the life before it at once; a lower one, a copied state folder
most likely, is refused while the higher one lives.  When that is over too, the node comes above it: its folder may be
an earlier state of itself, put back from a copy.

Where connections are secured a node has a name, which its certificate says and nobody else can.  A number belongs to
the name that it joined with, also when it is dead, until it has left; so no node ends another's life by its number.
A name has one living number: who comes with another one ends the life before it, unless that is connected.

Silence proves nothing while the coordinator itself stood still (stopped, starved): when a timer fires late, that time
is not counted, else a coordinator that wakes up would bury all its nodes before it reads what they said.

Each call returns what changed, in order, for the node to perform.  `Lifeline` is the same watch from an agent's side,
over one connection; `Backoff` says when to dial again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from lifl.core.errors import LocalFault
from lifl.core.limits import INCARNATION_MAX, NODES_MAX
from lifl.core.protocol.cluster import DEAD_S, HEARTBEAT_S, SUSPECT_S, PeerHello

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 3.0


class Timing(NamedTuple):
    """The clock of a control channel: the same on all nodes of a cluster."""

    heartbeat_s: float = HEARTBEAT_S
    suspect_s: float = SUSPECT_S
    dead_s: float = DEAD_S


TIMING = Timing()


class MemberState(Enum):
    """The life of a member; `TRANSITIONS` is the whole of it."""

    ALIVE = "alive"
    SUSPECT = "suspect"  # silent, or not connected
    DEAD = "dead"  # silent for too long, or its next life is here
    LEFT = "left"  # in good order


_S = MemberState
TRANSITIONS: dict[MemberState, frozenset[MemberState]] = {
    _S.ALIVE: frozenset({_S.SUSPECT, _S.DEAD, _S.LEFT}),
    _S.SUSPECT: frozenset({_S.ALIVE, _S.DEAD, _S.LEFT}),
    _S.DEAD: frozenset(),
    _S.LEFT: frozenset(),
}


@dataclass(slots=True)
class Member:
    """One life of a node; `since_s` is when it came into its state, `heard_s` when it last said something.

    `name` is that of its certificate; empty where connections are not secured.
    """

    hello: PeerHello
    since_s: float
    heard_s: float
    state: MemberState = MemberState.ALIVE
    connected: bool = True
    name: str = ""

    @property
    def gone(self) -> bool:
        """Dead, or left."""
        return not TRANSITIONS[self.state]

    def move(self, state: MemberState, now: float) -> None:
        """Change the state.  Raise `LocalFault`, and change nothing, when the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise LocalFault(f"node {self.hello.node:016x} cannot go from {self.state.value} to {state.value}")
        self.state = state
        self.since_s = now


class Up(msgspec.Struct, frozen=True):
    """A new life is a member."""

    hello: PeerHello


class Back(msgspec.Struct, frozen=True):
    """A life that was connected before has a new connection, in place of the old one."""

    hello: PeerHello


class Alive(msgspec.Struct, frozen=True):
    """A suspect is alive after all."""

    node: int


class Suspect(msgspec.Struct, frozen=True):
    """Something is wrong with a member."""

    node: int


class Down(msgspec.Struct, frozen=True):
    """A life has ended; its connection, if it has one, is to be closed.  `renewed`: the node's next life is here."""

    node: int
    why: str
    renewed: bool = False


class Left(msgspec.Struct, frozen=True):
    """A node has gone in good order; its connection is to be closed."""

    node: int


class Beat(msgspec.Struct, frozen=True):
    """A heartbeat is due, to every node that is connected."""


class Lost(msgspec.Struct, frozen=True):
    """The coordinator has been silent for too long: dial again."""


class Refuse(msgspec.Struct, frozen=True):
    """The node that wants to join cannot."""

    text: str


class Rejoin(msgspec.Struct, frozen=True):
    """The node that wants to join must come with an incarnation above `above`."""

    above: int


Change = Up | Back | Alive | Suspect | Down | Left | Beat | Refuse | Rejoin


class Membership:
    """The coordinator's table; `own` is its own node id, `nodes_max` bounds the others, with those that are gone."""

    def __init__(self, own: int, timing: Timing = TIMING, nodes_max: int = NODES_MAX) -> None:
        self._own = own
        self._timing = timing
        self._nodes_max = nodes_max
        self._members: dict[int, Member] = {}
        self._beat_s = 0.0

    @property
    def members(self) -> Mapping[int, Member]:
        """By node id, each node's latest life."""
        return MappingProxyType(self._members)

    def join(self, hello: PeerHello, now: float, name: str = "") -> list[Change]:
        """Take a node that asks to be a member: one Refuse or Rejoin, or (after Down of its last life) Up or Back.

        `name` is what its certificate says.
        """
        known = self._members.get(hello.node)
        if known is not None and known.name != name:
            own = f"{hello.node:016x}"  # what an authority calls a node that joins by a token
            if name == own and self._namesake(hello.node, name) is None:  # who came by its number is another
                ended = [] if known.gone else self._end(known, f"node {own} itself has come", now)
                del self._members[hello.node]
                return ended + self._admit(hello, now, name)
            if known.state is not MemberState.LEFT or known.name == own:
                return [Refuse(_not_its_own(hello.node, known.name, name))]
        namesake = self._namesake(hello.node, name)
        if namesake is not None and namesake.connected:
            return [Refuse(_twin_names(name, namesake.hello.node))]
        changes = self._joined(hello, now, name)
        if namesake is not None and isinstance(changes[-1], Up | Back):
            why = f"its identity {name!r} came back as node {hello.node:016x}"
            changes = self._end(namesake, why, now) + changes
        return changes

    def _namesake(self, node: int, name: str) -> Member | None:
        """Return the living member of another number that has the name."""
        for member in self._members.values():
            if name and member.name == name and member.hello.node != node and not member.gone:
                return member
        return None

    def _joined(self, hello: PeerHello, now: float, name: str) -> list[Change]:
        node, known = hello.node, self._members.get(hello.node)
        if node == self._own:
            return [Refuse(_twins(node, "the coordinator's"))]
        if known is None:
            return self._admit(hello, now, name)
        last = known.hello.incarnation
        if known.gone and hello.incarnation <= last:
            return [_above(known)]
        if hello.incarnation < last:
            life = f"life {hello.incarnation} of node {node:016x} is over: life {last} has joined already"
            return [Refuse(f"{life}; {_twins(node, 'that of another daemon')}")]
        if hello.incarnation == last:
            return self._again(known, hello, now)
        changes: list[Change] = []
        if not known.gone:
            changes = self._end(known, f"it came back as a new life, incarnation {hello.incarnation}", now, True)
        return changes + self._admit(hello, now, name)

    def _admit(self, hello: PeerHello, now: float, name: str) -> list[Change]:
        self._members.pop(hello.node, None)
        if len(self._members) >= self._nodes_max:
            gone = [member for member in self._members.values() if member.gone]
            if not gone:
                return [Refuse(f"the cluster has {self._nodes_max} nodes beside the coordinator, the most it can have")]
            del self._members[min(gone, key=lambda member: member.since_s).hello.node]
        self._members[hello.node] = Member(hello, now, now, name=name)
        self._start_beating(now)
        return [Up(hello)]

    def _again(self, known: Member, hello: PeerHello, now: float) -> list[Change]:
        if known.connected and hello.control != known.hello.control:
            where = f"that of a daemon which listens on {known.hello.control}"
            return [Refuse(_twins(hello.node, where))]
        known.hello = hello
        known.heard_s = now
        known.connected = True
        if known.state is not MemberState.ALIVE:
            known.move(MemberState.ALIVE, now)  # SUSPECT -> ALIVE
        self._start_beating(now)
        return [Back(hello)]

    def _start_beating(self, now: float) -> None:
        if sum(member.connected for member in self._members.values()) == 1:
            self._beat_s = now + self._timing.heartbeat_s

    def heard(self, node: int, now: float) -> list[Change]:
        """Note that the node said something, over the connection that it has."""
        member = self._members.get(node)
        if member is None or not member.connected:
            raise LocalFault(f"node {node:016x} was heard, but has no connection")
        member.heard_s = now
        if member.state is not MemberState.SUSPECT:
            return []
        member.move(MemberState.ALIVE, now)  # SUSPECT -> ALIVE
        return [Alive(node)]

    def lost(self, node: int, now: float) -> list[Change]:
        """Note that the node's connection has ended; why is not known."""
        member = self._members.get(node)
        if member is None or not member.connected:
            return []
        member.connected = False
        if member.state is not MemberState.ALIVE:
            return []
        member.move(MemberState.SUSPECT, now)  # ALIVE -> SUSPECT
        return [Suspect(node)]

    def leave(self, node: int, now: float) -> list[Change]:
        """Note that the node said that it goes."""
        member = self._members.get(node)
        if member is None or member.gone:
            return []
        member.connected = False
        member.move(MemberState.LEFT, now)  # ALIVE, SUSPECT -> LEFT
        return [Left(node)]

    def tick(self, now: float) -> list[Change]:
        """Return what is due by `now`."""
        due = self.next_timer()
        if due is None or now < due:
            return []
        living = [member for member in self._members.values() if not member.gone]
        late = now - due
        if late > self._timing.heartbeat_s:
            for member in living:
                member.heard_s = min(now, member.heard_s + late)
        changes: list[Change] = []
        for member in living:
            if now >= member.heard_s + self._timing.dead_s:
                changes += self._end(member, f"nothing was heard of it for {self._timing.dead_s:g} s", now)
            elif member.state is MemberState.ALIVE and now >= member.heard_s + self._timing.suspect_s:
                member.move(MemberState.SUSPECT, now)  # ALIVE -> SUSPECT
                changes.append(Suspect(member.hello.node))
        if now >= self._beat_s and any(member.connected for member in living):
            self._beat_s = now + self._timing.heartbeat_s
            changes.append(Beat())
        return changes

    def _end(self, member: Member, why: str, now: float, renewed: bool = False) -> list[Change]:
        member.connected = False
        member.move(MemberState.DEAD, now)  # ALIVE, SUSPECT -> DEAD
        return [Down(member.hello.node, why, renewed)]

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do; None: not before a node joins.  It may prove to be nothing."""
        due: list[float] = []
        beating = False
        for member in self._members.values():
            if member.gone:
                continue
            silence_s = self._timing.suspect_s if member.state is MemberState.ALIVE else self._timing.dead_s
            due.append(member.heard_s + silence_s)
            beating |= member.connected
        if beating:
            due.append(self._beat_s)
        return min(due, default=None)


def _above(known: Member) -> Rejoin | Refuse:
    last = known.hello.incarnation
    if last < INCARNATION_MAX:
        return Rejoin(last)
    return Refuse(f"node {known.hello.node:016x} came with the last number of a life; start the coordinator again")


def _twins(node: int, whose: str) -> str:
    return (
        f"the node id {node:016x} is {whose}; give each daemon a state folder of its own (--state), "
        "none copied from another node's"
    )


def _not_its_own(node: int, known: str, name: str) -> str:
    return (
        f"the node id {node:016x} is that of {known!r}, and the certificate is {name!r}'s: a state folder belongs to "
        "one identity; give the daemon its own (--state), or `lifl down` the other"
    )


def _twin_names(name: str, node: int) -> str:
    return (
        f"the identity {name!r} is that of node {node:016x}, which is connected: each node has an identity of its own, "
        "copied from no other"
    )


class Lifeline:
    """An agent's watch over its connection to the coordinator, from its welcome at `now`."""

    def __init__(self, now: float, timing: Timing = TIMING) -> None:
        self._timing = timing
        self._heard_s = now
        self._beat_s = now + timing.heartbeat_s

    def heard(self, now: float) -> None:
        """Note that the coordinator said something."""
        self._heard_s = now

    def tick(self, now: float) -> list[Beat | Lost]:
        """Return what is due by `now`; after Lost there is nothing more."""
        late = now - self.next_timer()
        if late < 0:
            return []
        if late > self._timing.heartbeat_s:
            self._heard_s = min(now, self._heard_s + late)
        if now >= self._heard_s + self._timing.dead_s:
            return [Lost()]
        if now < self._beat_s:
            return []
        self._beat_s = now + self._timing.heartbeat_s
        return [Beat()]

    def next_timer(self) -> float:
        """Return when `tick` has something to do."""
        return min(self._beat_s, self._heard_s + self._timing.dead_s)


class Backoff:
    """How long to wait before the next attempt: twice as long each time, within limits, half of it drawn at random.

    The draw keeps the agents of a coordinator that comes back from dialling all at once.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._ceiling_s = BACKOFF_MIN_S

    def reset(self) -> None:
        """Begin anew: an attempt was good for something."""
        self._ceiling_s = BACKOFF_MIN_S

    def next_s(self) -> float:
        """Return a pause between half the ceiling and the ceiling, which is `BACKOFF_MIN_S` to `BACKOFF_MAX_S`."""
        ceiling_s = self._ceiling_s
        self._ceiling_s = min(BACKOFF_MAX_S, ceiling_s * 2)
        return ceiling_s * self._random.uniform(0.5, 1.0)
