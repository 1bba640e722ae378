"""What an agent's message must be beyond its types, before anything is decided on it: costs, trees, and who is in what.

Costs and the lines of trees are shown and added up, and travel as plain values; what is not one of their fields is
dropped here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from lifl.core.errors import RemoteFault
from lifl.core.fields import Count
from lifl.core.limits import BRANCH_UPDATES_MAX, COST_BYTES_MAX, COST_S_MAX
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=COST_S_MAX)]
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=COST_BYTES_MAX)]
_Times = Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]


class TreeLine(TypedDict):
    """One task of a branch, as it is shown (`agent/branch.py`); in a heartbeat with its job and epoch."""

    address: Count
    role: Literal["leaf", "middle", "top"]
    parent: Count
    branch: Count
    number: Count
    parent_number: Count | None
    state: Literal["waiting", "running", "sealed"]
    inputs: Count
    expect: Count
    updates: Count
    updates_expect: Count
    pid: Count | None
    attempt: Count
    cpu_s: _Seconds
    began_s: NotRequired[_Seconds]
    ended_s: NotRequired[_Seconds]
    job: NotRequired[Count]
    epoch: NotRequired[Count]


class ReceiptLine(TreeLine):
    """One task of a round; `node` in hexadecimal digits.

    It stands here, for from Python 3.14 on what a TypedDict has of another is looked up in its own module.
    """

    node: NotRequired[str]


class Cost(TypedDict, total=False):
    """A branch's part of the receipt."""

    worker_cpu_s: _Seconds
    busy_s: _Seconds
    sent_bytes: _Bytes
    fetched_bytes: _Bytes
    peak_bytes: _Bytes
    starts: Annotated[dict[Literal["cold", "warm", "promoted", "shared"], _Times], msgspec.Meta(max_length=4)]
    tree: Annotated[list[TreeLine], msgspec.Meta(max_length=2 * BRANCH_UPDATES_MAX)]


def checked(message: Any) -> Any:
    """Return what is to be taken for an agent's message.  Raise `RemoteFault` when it cannot be one."""
    try:
        match message:
            case p.Heartbeat():
                tree = tuple(msgspec.convert(list(message.tree), list[TreeLine]))
                return msgspec.structs.replace(message, tree=tree)
            case o.BranchSealed() | o.ModelSealed():
                return msgspec.structs.replace(message, cost=msgspec.convert(message.cost, Cost))
            case p.Inventory():
                for branch in message.branches:
                    _check_clients(branch.members, branch.granted)
            case o.BranchAdopted() | o.PartialArrived():
                _check_clients(message.members)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise RemoteFault(f"a {type(message).__name__} is not one of this channel: {error}") from error
    return message


def _check_clients(*contributions: o.Contributions) -> None:
    clients = [client for members in contributions for client, *_ in members]
    if len(set(clients)) != len(clients):
        raise RemoteFault("a client is in one branch twice")
