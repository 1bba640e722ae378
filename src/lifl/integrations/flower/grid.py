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
    """What the messages of one `configure_...` are about."""

    def again(self, reply: Any) -> Any | None:
        """Return the message to send in the place of a reply that does not count, if it is one."""

    def is_small(self, message_id: str) -> bool:
        """Return whether the reply to a message has no arrays to speak of, as far as is known."""


class LiflGrid:
    """The Grid `grid`, but that the replies to the messages of an exchange are pulled one by one."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid
        self._exchange: Exchange | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def expect(self, exchange: Exchange) -> None:
        """Treat the messages that are sent next as those of `exchange`."""
        self._exchange = exchange

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None, **more: Any) -> Iterable[Any]:
        """Send the messages, and return their replies: of an exchange, an iterator that gives each as it comes."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            found: Iterable[Any] = self._grid.send_and_receive(messages, timeout=timeout, **more)
            return found
        deadline_s = None if timeout is None else time.monotonic() + timeout
        return self._replies(exchange, self._pushed(messages), deadline_s)

    def _pushed(self, messages: Iterable[Any]) -> set[str]:
        """Send messages, and return the ids of those that are on their way; Flower says of the others why not."""
        return {each for each in self._grid.push_messages(list(messages)) if each is not None}

    def _replies(self, exchange: Exchange, waiting: set[str], deadline_s: float | None) -> Iterator[Any]:
        pause_s = PAUSE_FIRST_S
        while waiting:
            came = False
            for ids in _batches(exchange, waiting):
                found = list(self._grid.pull_messages(ids))
                came = came or bool(found)
                while found:
                    waiting.discard(found[-1].metadata.reply_to_message_id)
                    again = exchange.again(found[-1])
                    if again is None:
                        yield found.pop()
                    else:
                        found.pop()
                        waiting |= self._pushed([again])
            left_s = PAUSE_MAX_S if deadline_s is None else deadline_s - time.monotonic()
            if not waiting or left_s <= 0:
                return
            pause_s = PAUSE_FIRST_S if came else min(2 * pause_s, PAUSE_MAX_S)
            time.sleep(min(pause_s, left_s))


def _batches(exchange: Exchange, waiting: set[str]) -> list[list[str]]:
    """Return what is asked for at a time: one reply with arrays, all those without."""
    small = [each for each in waiting if exchange.is_small(each)]
    return [*([small] if small else []), *([each] for each in waiting.difference(small))]


Grid.register(LiflGrid)
