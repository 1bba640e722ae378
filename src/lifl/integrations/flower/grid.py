"""Flower's Grid, with replies that are handed on as they come, instead of all at once when the last one is there.

Only `push_messages` and `pull_messages` are used of the Grid that the ServerApp was given; everything else goes to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from flwr.serverapp import Grid

PAUSE_FIRST_S, PAUSE_MAX_S = 0.1, 1.0
"""Flower's servers tell nobody of a reply: they are asked again after a pause, that grows while nothing comes."""


class Exchange(Protocol):
    """What the messages of one `configure_...` are about; `waiting` are the ids of those without a reply."""

    waiting: set[str]

    def is_done(self) -> bool:
        """Return whether nothing more is to come."""

    def pause(self, longest_s: float) -> None:
        """Wait so long, or until it may be done."""

    def again(self, reply: Any) -> Any | None:
        """Return the message to send in the place of a reply that does not count, if it is one."""

    @property
    def is_small(self) -> bool:
        """Whether replies have no arrays to speak of, as far as is known."""


class LiflGrid:
    """The Grid `grid`, but that the replies to the messages of an exchange are pulled one by one."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid
        self._exchange: Exchange | None = None
        self._early: tuple[Exchange, list[Any]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def expect(self, exchange: Exchange, early: tuple[Exchange, list[Any]] | None = None) -> None:
        """Treat the messages that are sent next as those of `exchange`; behind them send `early`, those of another."""
        self._exchange, self._early = exchange, early

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None, **more: Any) -> Iterable[Any]:
        """Send the messages, and return their replies: of an exchange, an iterator that gives each as it comes."""
        exchange, self._exchange = self._exchange, None
        early, self._early = self._early, None
        if exchange is None:
            messages = list(messages)
            if not messages:
                return []
            found: Iterable[Any] = self._grid.send_and_receive(messages, timeout=timeout, **more)
            return found
        deadline_s = None if timeout is None else time.monotonic() + timeout
        sent = self._pushed(messages)
        if early is not None:
            early[0].waiting |= self._pushed(early[1])
        return self._replies(exchange, sent, deadline_s)

    def _pushed(self, messages: Iterable[Any]) -> set[str]:
        """Send messages, and return the ids of those that are on their way; Flower says of the others why not."""
        listed = list(messages)
        return {each for each in self._grid.push_messages(listed) if each is not None} if listed else set()

    def _replies(self, exchange: Exchange, sent: set[str], deadline_s: float | None) -> Iterator[Any]:
        pause_s = PAUSE_FIRST_S
        exchange.waiting |= sent
        while not exchange.is_done():
            left_s = PAUSE_MAX_S if deadline_s is None else deadline_s - time.monotonic()
            if left_s <= 0:
                return
            exchange.pause(min(pause_s, left_s))
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
            for ids in _batches(exchange):
                found = list(self._grid.pull_messages(ids))
                pause_s = PAUSE_FIRST_S if found else pause_s
                while found:
                    exchange.waiting.discard(found[-1].metadata.reply_to_message_id)
                    again = exchange.again(found[-1])
                    if again is None:
                        yield found.pop()
                    else:
                        found.pop()
                        exchange.waiting |= self._pushed([again])


def _batches(exchange: Exchange) -> list[list[str]]:
    """Return what is asked for at a time: one reply where they have arrays, else all."""
    if exchange.is_small and exchange.waiting:
        return [list(exchange.waiting)]
    return [[each] for each in exchange.waiting]


Grid.register(LiflGrid)
