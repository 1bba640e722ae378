"""Messages that are sent ahead: those of the next round while this one runs, so that no SuperNode sleeps in between.

A SuperNode asks its SuperLink for messages every few seconds, and at once when it has sent a reply.  So a node is sent
the next round's message with this one's: its ClientApp then waits at LIFL's node until that round's fold is open.  It
knows the fold by the one before (`Selected.behind`), and fails at once when it comes too late for it.

Only who has brought its last update by LIFL is sent its message ahead.  The others have theirs when the round begins,
with what they need.  A node takes its messages in the order in which they were made: one that needs a second message
for this round, with arrays, and has the next round's already would wait for a round that waits for it.  It is out of
this round, and is sent nothing ahead until it has brought an update again.
"""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord, ConfigRecord

from lifl.aggregator import Fold
from lifl.integrations.flower.exchanges import TrainExchange, like, name_of
from lifl.integrations.flower.records import KEY, RECORD, WEIGHTED_BY
from lifl.integrations.references import reference_ahead


class AheadExchange(TrainExchange):
    """One round of training, for which the strategy has chosen nodes while the round before runs."""

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self.out: set[int] = set()
        """Nodes that have their messages."""
        self._later: list[Any] = []
        self.size = 0

    def early(self, messages: list[Any], before: Fold) -> list[Any] | None:
        """Return those of the round's messages that are sent now, in the round of the fold `before`.

        None: they have arrays of the strategy's own, which are those of an earlier round.
        """
        if not all(self._refers(message) for message in messages):
            return None
        self.size = len(messages)
        found = []
        for message in messages:
            node = message.metadata.dst_node_id
            content = type(message.content)({**message.content, self._key: ArrayRecord()})
            bare = like(message, content)
            if not self._routes.brings(node, self._round):
                self._later.append(bare)
                continue
            self.out.add(node)
            self._plain[node] = bare
            self._bare.add(node)
            ticket = reference_ahead(before, name_of(node), message.metadata.ttl).texts()
            said = ConfigRecord({KEY: self._key, WEIGHTED_BY: self._weighted_by, **ticket})
            found.append(like(bare, type(content)({**content, RECORD: said})))
        return found

    def is_about(self, arrays: Any) -> bool:
        """Return whether the round's fold is open, with this model."""
        return self.is_open and self._arrays is arrays

    def begin(self, arrays: Any, fold: Fold) -> None:
        """Have the round begin: with the model `arrays`, with which `fold` was opened."""
        self._arrays, self.fold = arrays, fold

    def rest(self) -> list[Any]:
        """Return the messages that were not sent ahead, as the strategy would make them now."""
        later, self._later = self._later, []
        return [like(each, type(each.content)({**each.content, self._key: self._arrays})) for each in later]
