"""What a node's HTTP door and its `lifld` say to each other, beside `gateway.ClientCame`."""

from __future__ import annotations

from typing import Any

import msgspec

from lifl.core.fields import Address, Count, Message, Pid
from lifl.core.protocol.gateway import BearersTold, ClientCame, Drain, Revoked


class HttpReady(Message, frozen=True):
    """The HTTP door listens at `address`; `landlock` is as in ZygoteReady."""

    pid: Pid
    address: Address
    landlock: Count = 0


class StatusAsked(Message, frozen=True):
    """Somebody who may do so asks for the node's status: answered by StatusTold with the same number."""

    number: Count


class StatusTold(Message, frozen=True):
    """What the node says of itself."""

    number: Count
    status: dict[str, Any] = msgspec.field(default_factory=dict)


FromHttp = HttpReady | ClientCame | StatusAsked
ToHttp = Revoked | BearersTold | StatusTold | Drain
