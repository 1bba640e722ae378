"""What is under way between a strategy and its nodes: the messages of one round of training, or of evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from lifl.aggregator import Fold
from lifl.core.errors import Refused
from lifl.integrations.flower.records import (
    CARRIED,
    CONFIG_KEY,
    DID,
    KEY,
    LATE,
    MODEL_WANTED,
    RECORD,
    ROUNDS,
    SUBMITTED,
    WEIGHTED_BY,
    WHY,
    freed,
    sole_arrays,
    views,
    weight_of,
)
from lifl.integrations.flower.routes import Routes
from lifl.integrations.references import reference


def name_of(node: int) -> str:
    """Return by which name a node takes part in folds."""
    return f"node-{node}"


class NodeExchange:
    """The messages of one kind that are out in one round; `fold` has the model that they refer to, if any do.

    `key` is under which the arrays of the model, `arrays`, stand in a message; messages with others are let be.
    """

    def __init__(self, kind: str, server_round: int, routes: Routes, arrays: Any, key: str) -> None:
        self.kind = kind
        self.fold: Fold | None = None
        self.digest = ""
        self._round = server_round
        self._routes = routes
        self._arrays = arrays
        self._key = key
        self._plain: dict[int, Any] = {}
        """Messages as the strategy made them, by node."""
        self._bare: set[int] = set()
        """Nodes that were sent no arrays."""
        self.waiting: set[str] = set()

    def wants_model(self, messages: Iterable[Any]) -> bool:
        """Return whether some message will refer to the model instead of carrying it."""
        return any(not self._with_arrays(message) for message in messages)

    def outgoing(self, message: Any) -> Any:
        """Return the message that is sent in the place of one that the strategy made."""
        node = message.metadata.dst_node_id
        self._plain[node] = message
        if not self._refers(message) or not self._routes.by_lifl(self.kind, node, self._round):
            return message
        bare = not self._with_arrays(message)
        said = {KEY: self._key, **self._said(node, message.metadata.ttl, bare)}
        content = type(message.content)({**message.content, RECORD: ConfigRecord(said)})
        if bare:
            self._bare.add(node)
            content[self._key] = ArrayRecord()
        return like(message, content)

    def _said(self, node: int, ttl_s: float, bare: bool) -> dict[str, str]:
        """Return what the mod is told."""
        if self.fold is None or not bare:
            return {}
        return reference(self.fold, name_of(node), ttl_s, self.digest).texts()

    def _refers(self, message: Any) -> bool:
        return message.content.get(self._key) is self._arrays and RECORD not in message.content

    def _with_arrays(self, message: Any) -> bool:
        node = message.metadata.dst_node_id
        return not self._refers(message) or self._routes.with_arrays(self.kind, node, self._round)

    # ---- what the Grid asks ------------------------------------------------------------------------------------------

    def is_done(self) -> bool:
        """See `grid.Exchange`."""
        return not self.waiting

    def pause(self, longest_s: float) -> None:
        """See `grid.Exchange`."""
        time.sleep(longest_s)

    @property
    def is_small(self) -> bool:
        """See `grid.Exchange`."""
        return self.kind != "train" or self._routes.knows_mod(self.kind) is True

    def again(self, reply: Any) -> Any | None:
        """Return the message with arrays for a node that has none, or None: the reply counts."""
        node = reply.metadata.src_node_id
        if node not in self._plain:
            return None
        did, why = said_in(reply)
        if reply.has_content():
            self._routes.heard(self.kind, node, bool(did))
        if did == CARRIED and why:
            self._routes.carried(node, why)
        if node not in self._bare or (did and did != MODEL_WANTED):
            return None
        if reply.has_error() and self._routes.knows(self.kind, node):  # it has the mod, and failed
            return None
        self._bare.discard(node)
        if not did:
            why = "it answers as if its ClientApp had no lifl_mod"
        self._routes.block(node, self._round, why)
        plain = self._plain[node]
        return like(plain, type(plain.content)({**plain.content, self._key: self._arrays}))


class TrainExchange(NodeExchange):
    """One round of training: the updates go into `fold`."""

    fold: Fold

    def __init__(self, server_round: int, routes: Routes, arrays: Any, key: str, weighted_by: str) -> None:
        super().__init__("train", server_round, routes, arrays, key)
        self._weighted_by = weighted_by
        self.by_lifl: set[str] = set()
        """Who says that its update is in LIFL."""
        self.sent_ahead: set[int] = set()
        """Nodes that have their messages for the next round already."""
        self._unserved: dict[int, str] = {}
        """Nodes that need a second message and are not sent one, and why they need it."""

    def _said(self, node: int, ttl_s: float, bare: bool) -> dict[str, str]:
        digest = self.digest if bare else ""
        return {WEIGHTED_BY: self._weighted_by, **reference(self.fold, name_of(node), ttl_s, digest).texts()}

    def more(self) -> bool:
        """Return whether the next round needs no message."""
        return False

    @property
    def is_open(self) -> bool:
        """Whether it has its fold."""
        return getattr(self, "fold", None) is not None

    def again(self, reply: Any) -> Any | None:
        """See `NodeExchange.again`; who has its message for the next round already is sent none."""
        found, node = super().again(reply), reply.metadata.src_node_id
        if found is None or node not in self.sent_ahead:
            return found
        self._unserved[node] = said_in(reply)[1] or "it has no lifl_mod"
        return None

    def take_brought(self, contents: dict[str, Any]) -> None:
        """Add to the contents of replies, by name, those that came by LIFL alone."""

    def take(self, reply: Any) -> Any | None:
        """Take the update of a reply into the fold, and return the reply's content without its arrays, if it counts.

        Raise `Refused`: it does not count, and nothing else is harmed.
        """
        content, node = reply.content, reply.metadata.src_node_id
        did, _why = said_in(reply)
        if node in self._unserved:
            text = f"it gets no model by LIFL ({self._unserved[node]}), and has its message for the next round already"
            raise Refused("bad-reply", "model", text)
        content.pop(RECORD, None)
        weight = weight_of(content, self._weighted_by)
        if did == SUBMITTED:
            self.by_lifl.add(name_of(node))
            self._routes.brought(node)
            return content
        arrays = sole_arrays(content)
        try:
            if weight != 0:
                self.fold.add(views(arrays), weight, client=name_of(node))
        finally:
            freed(arrays)
        (name,) = content.array_records
        del content[name]
        return content


class SeriesExchange(TrainExchange):
    """Several rounds of training for one message: a ClientApp takes part in one after the other.

    A round is done when all who take part have brought their updates by LIFL, or have replied: then they are through.
    """

    def __init__(self, *about: Any, rounds: int, config_key: str, earlier: set[str]) -> None:
        super().__init__(*about)
        self._rounds_left = rounds
        self._rounds = rounds
        self._config_key = config_key
        self._earlier = earlier
        self.waiting |= earlier
        self._taking_part: set[str] = set()

    def begin(self, server_round: int, fold: Fold) -> None:
        """Go on with the next round."""
        self._round, self.fold = server_round, fold
        self._rounds_left -= 1
        self.by_lifl = set()
        self._bare.clear()  # a second message would have the model of an earlier round

    @property
    def size(self) -> int:
        """How many take part."""
        return len(self._taking_part)

    def outgoing(self, message: Any) -> Any:
        """See `NodeExchange.outgoing`."""
        self._taking_part.add(name_of(message.metadata.dst_node_id))
        return super().outgoing(message)

    def _said(self, node: int, ttl_s: float, bare: bool) -> dict[str, str]:
        found = reference(self.fold, name_of(node), ttl_s, self.digest if bare else "", standing=True).texts()
        return {WEIGHTED_BY: self._weighted_by, ROUNDS: str(self._rounds), CONFIG_KEY: self._config_key, **found}

    def more(self) -> bool:
        """See `TrainExchange.more`."""
        return self._rounds_left > 1 and bool(self._taking_part)

    def is_done(self) -> bool:
        """See `grid.Exchange`."""
        return self._taking_part <= self.fold.brought.keys()

    def pause(self, longest_s: float) -> None:
        """See `grid.Exchange`."""
        self.fold.wait(self._taking_part, longest_s)

    def again(self, reply: Any) -> Any | None:
        """See `NodeExchange.again`; who has replied takes part no longer."""
        if reply.metadata.reply_to_message_id in self._earlier:
            return None
        found = super().again(reply)
        if found is None:
            self._taking_part.discard(name_of(reply.metadata.src_node_id))
        return found

    def take(self, reply: Any) -> Any | None:
        """See `TrainExchange.take`."""
        if reply.metadata.reply_to_message_id in self._earlier or said_in(reply)[0] in (SUBMITTED, LATE):
            return None
        return super().take(reply)

    def take_brought(self, contents: dict[str, Any]) -> None:
        """See `TrainExchange.take_brought`."""
        for name, told in self.fold.brought.items():
            metrics = MetricRecord({**told.metrics, self._weighted_by: told.weight})
            contents[name] = RecordDict({"metrics": metrics})
            self.by_lifl.add(name)


def said_in(reply: Any) -> tuple[str, str]:
    """Return what the mod did, and why; empty: the reply is not the mod's."""
    said = reply.content.get(RECORD) if reply.has_content() else None
    if not isinstance(said, ConfigRecord):
        return "", ""
    return str(said.get(DID) or ""), str(said.get(WHY) or "")


def like(message: Any, content: Any) -> Any:
    """Return a message as this one, with another content."""
    about = message.metadata
    return Message(content, about.dst_node_id, about.message_type, ttl=about.ttl, group_id=about.group_id)
