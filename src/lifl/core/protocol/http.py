"""What a node's HTTP door and its `lifld` say to each other, beside `gateway.ClientCame`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from lifl.core.fields import Address, Count, Message, Name, Pid, Real, Secret, Text, Word
from lifl.core.identity import Role
from lifl.core.limits import WEB_LINKS_MAX, WEB_VISITS_MAX
from lifl.core.protocol.gateway import BearersTold, ClientCame, Drain, Revoked
from lifl.core.trust.page_visits import Digest
from lifl.core.trust.tokens import TokenSecret


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


class LinkShown(Message, frozen=True):
    """Somebody shows the secret of a link to the page: answered by VisitOpened with the same number."""

    number: Count
    link: TokenSecret


class VisitOpened(Message, frozen=True):
    """The visit that a link opens: its two secrets, as whom, until when; or, with a `code`, why it opens none."""

    number: Count
    cookie: Secret = ""
    key: Secret = ""
    role: Role = "reader"
    name: Name = "-"
    expires_unix_s: Real = 0.0
    code: Word = ""
    text: Text = ""


class VisitorCame(Message, frozen=True):
    """A visitor asks for something: the descriptor that comes along is its connection, as one of the command line."""

    cookie: TokenSecret
    key: TokenSecret


class VisitEnded(Message, frozen=True):
    """A visitor leaves for good."""

    cookie: TokenSecret
    key: TokenSecret


class VisitsTold(Message, frozen=True):
    """The digests of all links, and of all visits with their ends and as whom: nobody else is brought to `lifld`."""

    links: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=WEB_LINKS_MAX)] = ()
    visits: Annotated[tuple[tuple[Digest, Real, Role], ...], msgspec.Meta(max_length=WEB_VISITS_MAX)] = ()


class HealthAsked(Message, frozen=True):
    """Somebody, whoever it is, asks whether the node takes updates: answered by HealthTold with the same number."""

    number: Count


class HealthTold(Message, frozen=True):
    """Whether the node takes updates."""

    number: Count
    is_ready: bool


FromHttp = HttpReady | ClientCame | StatusAsked | HealthAsked | LinkShown | VisitorCame | VisitEnded
ToHttp = Revoked | BearersTold | StatusTold | HealthTold | VisitOpened | VisitsTold | Drain
