"""An aggregator of SF: a gRPC server that folds what it is sent, and sends its partial sum on to its parent.

A thread of its own folds updates one after the other, by blocks that stay in the cache, while the server's threads
receive the next ones into buffers that are used again.  The weighted sum divided by the sum of weights is the mean at
the top; below the top the sum and its weight are sent on in the same way as an update.

    python -m systems.serverful_server BYTES PARENT METHOD      (PARENT is empty at the top)
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from measure import answer, orders
from numpy.typing import NDArray

from systems.folding import Floats, fold, scale
from systems.serverful import OPTIONS, caller

THREADS = 32


class Aggregator:
    """The service and its folding thread."""

    def __init__(self, nbytes: int, parent: str, method: str) -> None:
        self._nbytes = nbytes
        self.sum = np.zeros(nbytes // 4, np.float32)
        self._spare: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[tuple[float, Floats, NDArray[np.uint8] | None]] = queue.SimpleQueue()
        self.received: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        self._expect = 0
        self.done = threading.Event()
        self.done_ns = self.last_ns = 0
        self._send = None
        if parent:
            channel = grpc.insecure_channel(parent, OPTIONS)
            grpc.channel_ready_future(channel).result(60)
            self._send = caller(channel, method)
        self.touch = False

    def begin(self, expect: int) -> None:
        """Begin a new round of `expect` inputs."""
        self.done.clear()
        self._expect = expect
        threading.Thread(target=self._fold_all, daemon=True).start()

    def send_on(self, weight: float) -> None:
        """Send the sum to the parent."""
        assert self._send is not None
        self._send(weight, [self.sum.view(np.uint8).data])

    # ---- the service -------------------------------------------------------------------------------------------

    def stream(self, messages: Iterator[bytes], _context: Any) -> bytes:
        """Receive an update in chunks into a buffer."""
        weight = float(np.frombuffer(next(messages))[0])
        try:
            buffer = self._spare.get_nowait()
        except queue.Empty:
            buffer = np.empty(self._nbytes, np.uint8)
        position = 0
        for message in messages:
            buffer[position : position + len(message)] = np.frombuffer(message, np.uint8)
            position += len(message)
        if position != self._nbytes:
            raise ValueError(f"an update of {position} bytes came, not of {self._nbytes}")
        self._take(weight, buffer.view(np.float32), buffer)
        return b""

    def unary(self, message: bytes, _context: Any) -> bytes:
        """Take an update that is one message, as it is."""
        self._take(float(np.frombuffer(message, np.float64, 1)[0]), np.frombuffer(message, np.float32, offset=8), None)
        return b""

    def _take(self, weight: float, numbers: Floats, buffer: NDArray[np.uint8] | None) -> None:
        if self.touch:  # a hand-off is measured: the numbers are read here and now
            touched = float(numbers[0] + numbers[len(numbers) // 2] + numbers[-1])
            self.received.put((time.monotonic_ns(), touched))
            if buffer is not None:
                self._spare.put(buffer)
            return
        self.last_ns = time.monotonic_ns()
        self._arrived.put((weight, numbers, buffer))

    # ---- the fold ------------------------------------------------------------------------------------------------

    def _fold_all(self) -> None:
        total = 0.0
        for number in range(self._expect):
            weight, numbers, buffer = self._arrived.get()
            # A partial's weight is negative: its numbers are weighted already.
            fold(self.sum, numbers, weight if weight > 0 else 1.0, first=number == 0)
            total += abs(weight)
            if buffer is not None:
                self._spare.put(buffer)
        if self._send is None:
            scale(self.sum, 1 / total)
        else:
            self.send_on(-total)
        self.done_ns = time.monotonic_ns()
        self.done.set()


def main() -> None:
    """Serve until stdin ends."""
    nbytes, parent, method = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    aggregator = Aggregator(nbytes, parent, method)
    server = grpc.server(ThreadPoolExecutor(THREADS), options=[*OPTIONS, ("grpc.so_reuseport", 0)])
    handlers = {
        "Stream": grpc.stream_unary_rpc_method_handler(aggregator.stream),
        "Unary": grpc.unary_unary_rpc_method_handler(aggregator.unary),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Aggregator", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    answer(port=port)
    for what in orders():
        if what["what"] == "begin":
            aggregator.begin(what["expect"])
            answer(begun=True)
        elif what["what"] == "result":
            aggregator.done.wait()
            np.save(what["path"], aggregator.sum)
            answer(done_ns=aggregator.done_ns)
        elif what["what"] == "last":
            answer(last_ns=aggregator.last_ns)
        elif what["what"] == "touch":
            aggregator.touch = True
            answer(touching=True)
        elif what["what"] == "send":
            begun_ns = time.monotonic_ns()
            aggregator.send_on(1.0)
            answer(begun_ns=begun_ns)
        elif what["what"] == "received":
            received_ns, _ = aggregator.received.get()
            answer(received_ns=received_ns)
    server.stop(0)


if __name__ == "__main__":
    main()
