"""A member of the cluster as it is told: to the agents, and to people."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from lifl.core.protocol import cluster as p


def row(member: p.PeerMember, role: str) -> dict[str, Any]:
    """Return the fields of PeerMember with `node` as 16 hex digits, and `role`."""
    return msgspec.structs.asdict(member) | {"node": f"{member.node:016x}", "role": role}


def met(hello: p.PeerHello, host: str) -> p.PeerHello:
    """Return `hello` with addresses that others can use, of a node that was met at `host`."""
    control, gateway = p.reachable(hello.control, host), p.reachable(hello.gateway, host)
    return msgspec.structs.replace(hello, control=control, gateway=gateway)


def unix_of(at_s: float) -> float:
    """Return when a moment of the loop's clock (s) was, by the wall clock as it is set now (s since 1970)."""
    return time.time() - (asyncio.get_running_loop().time() - at_s)


def as_member(hello: p.PeerHello, state: p.MemberStateName, since_unix_s: float) -> p.PeerMember:
    """Return the member that said `hello`."""
    fields = msgspec.structs.asdict(hello)
    del fields["version"], fields["knows"]
    return p.PeerMember(state=state, since_unix_s=since_unix_s, **fields)
