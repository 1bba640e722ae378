"""A client's large bodies over several connections (`core/protocol/body_ranges.py`).

The side connections are made before the body is asked for, so that nothing at the node waits for them, and closed
behind it; each has a thread meanwhile.  Where fewer are to be had there are fewer, and the next body goes over one.
What fails over several connections is done again, as after any break, over one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from lifl.client.liveness import ANSWER_S
from lifl.client.stream import Progress, Stream, greeted, shut
from lifl.core.errors import LiflError, LocalFault, RemoteFault
from lifl.core.limits import STREAMS_MAX
from lifl.core.protocol.body_ranges import SPLIT_BYTES_MIN, BodyRange, body_ranges

log = logging.getLogger("lifl.client")

T = TypeVar("T")
Transfer = str | msgspec.UnsetType
"""The id of a transfer; UNSET: the body goes over the first connection alone."""


def check_streams(streams: int) -> None:
    """Raise `LocalFault` unless it is a number of connections, or 0: as the cores say."""
    if isinstance(streams, bool) or not (isinstance(streams, int) and 0 <= streams <= STREAMS_MAX):
        raise LocalFault(f"streams={streams!r:.100}: give a number of connections, 0 to {STREAMS_MAX}")


class Split:
    """A body's ways: the connection by which it is asked for, and side connections, each with a thread of `threads`."""

    def __init__(self, stream: Stream, sides: Sequence[Stream], threads: ThreadPoolExecutor | None) -> None:
        self._stream = stream
        self._sides = sides
        self._threads = threads

    @property
    def asked(self) -> int | msgspec.UnsetType:
        """What to ask for; UNSET: nothing."""
        return 1 + len(self._sides) if self._sides else msgspec.UNSET

    def send(self, transfer: Transfer, views: Sequence[memoryview], progress: Progress | None) -> None:
        """Send the bytes of `views`, one after the other.  Raise `OSError`."""
        if isinstance(transfer, msgspec.UnsetType):
            self._stream.send_views(views, progress)
            return
        total = sum(view.nbytes for view in views)
        ranges = body_ranges(total, 1 + len(self._sides))
        sent = [0] * len(ranges)

        def send_range(stream: Stream, number: int) -> None:
            def count(sent_bytes: int, _all: int) -> None:
                sent[number] = sent_bytes
                if number == 0 and progress is not None:
                    progress(sum(sent), total)

            stream.send_views(_between(views, *ranges[number]), count)

        self._all(transfer, send_range)
        if progress is not None:
            progress(total, total)

    def receive_into(self, transfer: Transfer, view: memoryview) -> None:
        """Fill `view`.  Raise `OSError`."""
        if isinstance(transfer, msgspec.UnsetType):
            self._stream.receive_into(view)
            return
        ranges = body_ranges(len(view), 1 + len(self._sides))

        def receive_range(stream: Stream, number: int) -> None:
            begin, end = ranges[number]
            stream.receive_into(view[begin:end])

        self._all(transfer, receive_range)

    def _all(self, transfer: str, move: Callable[[Stream, int], None]) -> None:
        """Have every range moved, the first one by this thread."""
        if self._threads is None:
            raise RemoteFault("the node has parted a body that was not asked for in parts")

        def beside(side: Stream, number: int) -> None:
            try:
                side.send(BodyRange(transfer, number))
                move(side, number)
            except BaseException:
                shut(side)  # so the node ends the transfer, and nobody waits for this range
                raise

        moving = [self._threads.submit(beside, side, number) for number, side in enumerate(self._sides, 1)]
        move(self._stream, 0)
        self._stream.patiently(lambda: self._joined(moving))

    def _joined(self, moving: Sequence[Future[None]]) -> None:
        """Wait for the side connections as long as for anything else.  Raise `TimeoutError`, and what they raised."""
        patience_s = self._stream.watch.wait_s() if self._stream.watch is not None else None
        done, waiting = wait(moving, patience_s, return_when="FIRST_EXCEPTION")
        for future in done:
            future.result()
        if waiting:
            raise TimeoutError


def split(client: str, nbytes: int, action: Callable[[Stream, Split], T]) -> Callable[[Stream], T]:
    """Return what does `action` on a connection, with the ways of so many bytes that `client` gets or gives."""

    def over(stream: Stream) -> T:
        with ways_of(stream, client, nbytes) as ways:
            return action(stream, ways)

    return over


@contextmanager
def ways_of(stream: Stream, client: str, nbytes: int) -> Iterator[Split]:
    """Provide the ways of a body that is asked for over `stream`."""
    dialler = stream.dialler
    if stream.streams == 1 or nbytes < SPLIT_BYTES_MIN or not dialler.splits:
        yield Split(stream, (), None)
        dialler.splits = True
        return
    with ThreadPoolExecutor(stream.streams - 1, "lifl-side") as threads:
        dialled = threads.map(lambda _: _dialled(stream, client), range(stream.streams - 1))
        sides = [side for side in dialled if side is not None]
        try:
            yield Split(stream, sides, threads)
            dialler.splits = len(sides) == stream.streams - 1
        except OSError:
            dialler.splits = False
            raise
        finally:
            for side in sides:
                shut(side)
            threads.shutdown()
            for side in sides:
                side.close()


def _dialled(stream: Stream, client: str) -> Stream | None:
    """Return another connection to the same gateway; None where it cannot be had."""
    try:
        return greeted(stream.address, ANSWER_S, client, False, stream.dialler)
    except (OSError, LiflError) as error:
        log.warning("stream.unreachable gateway=%s error=%s", stream.address, error)
        return None


def _between(views: Sequence[memoryview], begin: int, end: int) -> list[memoryview]:
    """Return bytes `begin` to `end` of all that the views have, one after the other."""
    found = []
    at = 0
    for view in views:
        first, last = max(0, begin - at), min(view.nbytes, end - at)
        if first < last:
            found.append(view[first:last])
        at += view.nbytes
    return found
