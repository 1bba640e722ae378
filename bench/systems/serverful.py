"""SF: aggregators that always run, and gRPC between them and the clients (grpcio, its threaded server).

In the tree, the recommended form here, there is a leaf for each core and a top: a client sends its update to its leaf,
which folds it while others arrive, and hands the partial sum to the top.  Flat is one aggregator for all.  Messages are
plain bytes: no protobuf is packed around the numbers.  `stream` sends an update in chunks of 1 MiB, received into
recycled buffers; `unary` sends it as one message.  `last_in_s` is when the last update was complete in an aggregator's
memory; `out_s` is when the top has the mean in memory, from where an RPC reads it.

    python -m systems.serverful WORKLOAD      (the clients' own entry)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from measure import Helper, cpu_s

from systems import fleet
from systems.interface import RECYCLING, TUNED, Arrival, Idle, RoundResult, Watch, private_bytes
from systems.workload import Workload

CHUNK_BYTES = 1 << 20
LEAVES = 2
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
VARIANTS = ["stream, tree", "stream, flat", "unary, tree"]

COPIES = 1.7
"""Of all updates, in memory at the worst: an update on its way is in gRPC's memory, too."""


class Serverful:
    """See `interface.System`."""

    name = "SF"
    tolerance = 2e-6

    def __init__(self) -> None:
        self._opened = ExitStack()

    def variants(self) -> list[str]:
        return VARIANTS + [name + TUNED for name in VARIANTS]

    def versions(self) -> dict[str, str]:
        return {"grpcio": version("grpcio")}

    def missing(self) -> str:
        try:
            version("grpcio")
        except PackageNotFoundError:
            return "grpcio is not installed: pip install grpcio"
        return ""

    def needs_bytes(self, workload: Workload, clients: int) -> float:
        return COPIES * clients * workload.nbytes

    def start(self, workload: Workload, clients: int, variant: str, folder: Path) -> None:
        self._workload = workload
        self._result = folder / "model.npy"
        self._method = variant.split(",", maxsplit=1)[0]
        settings = RECYCLING if variant.endswith(TUNED) else {}
        self._top = aggregator(workload.nbytes, "", self._method, settings, self._opened)
        count = 0 if "flat" in variant else LEAVES
        self._leaves = [
            aggregator(workload.nbytes, self._top.address, self._method, settings, self._opened) for _ in range(count)
        ]
        self._fleet = fleet.Fleet("systems.serverful", workload, clients)
        self._opened.callback(self._fleet.close)

    @property
    def _pids(self) -> list[int]:
        return [server.helper.pid for server in (self._top, *self._leaves)]

    def round(self, arrivals: Sequence[Arrival]) -> RoundResult:
        clients = [arrival.client for arrival in arrivals]
        doors = self._leaves[: len(clients)] or [self._top]
        for number, leaf in enumerate(self._leaves):
            leaf.helper.ask(what="begin", expect=len(clients[number :: len(doors)]))
        self._top.helper.ask(what="begin", expect=len(doors) if self._leaves else len(clients))
        addresses = {client: doors[place % len(doors)].address for place, client in enumerate(clients)}
        self._fleet.prepare(
            clients, addresses=[addresses.get(c, "") for c in range(max(clients) + 1)], method=self._method
        )
        with Watch(lambda: self._pids) as watch:
            self._top.helper.order(what="result", path=str(self._result))
            sent = self._fleet.send(arrivals)
            told = self._top.helper.reply()
        last_ns = max(server.helper.ask(what="last")["last_ns"] for server in self._leaves or [self._top])
        return RoundResult(
            sent.first_s,
            sent.since(last_ns),
            sent.since(told["done_ns"]),
            watch.cpu_s,
            sent.cpu_s,
            watch.peak_bytes,
            0,
            self._workload.error(np.load(self._result), clients),
            rest_bytes=watch.rest_bytes,
        )

    def idle(self, seconds: float) -> Idle:
        before_s = cpu_s(self._pids)
        time.sleep(seconds)
        spent_s = cpu_s(self._pids) - before_s
        return Idle(spent_s, sum(map(private_bytes, self._pids)), 0, len(self._pids), len(self._pids))

    def stop(self) -> None:
        self._opened.close()


class Server:
    """An aggregator's process and its address."""

    def __init__(self, helper: Helper) -> None:
        self.helper = helper
        self.address = "127.0.0.1:{}".format(helper.reply()["port"])


def aggregator(nbytes: int, parent: str, method: str, settings: dict[str, str], opened: ExitStack) -> Server:
    """Start an aggregator, ended with `opened`."""
    helper = Helper("systems.serverful_server", [str(nbytes), parent, method], environment=settings)
    opened.callback(helper.close)
    return Server(helper)


# ---- sending -------------------------------------------------------------------------------------------------------


def header(weight: float) -> bytes:
    """Return what goes before an update's numbers."""
    return np.float64(weight).tobytes()


def chunks(weight: float, views: Sequence[memoryview]) -> Iterator[bytes]:
    """Yield an update as the messages of a stream: the header, then its bytes, at most `CHUNK_BYTES` each."""
    yield header(weight)
    for view in views:
        for begin in range(0, len(view), CHUNK_BYTES):
            yield bytes(view[begin : begin + CHUNK_BYTES])


def caller(channel: Any, method: str) -> Callable[[float, Sequence[memoryview]], None]:
    """Send an update over a channel; return when it is in the other side's memory."""
    if method == "stream":
        stream = channel.stream_unary("/bench.Aggregator/Stream")
        return lambda weight, views: stream(chunks(weight, views))
    unary = channel.unary_unary("/bench.Aggregator/Unary")
    return lambda weight, views: unary(b"".join([header(weight), *views]))


class Trainer:
    """A client with its own channel, connected before the round begins."""

    def __init__(self, workload: Workload, client: int, addresses: list[str], method: str) -> None:
        import grpc

        self._weight = workload.weight(client)
        # As a trainer has it: tensor after tensor.  Small ones are sent together.
        self._views = [workload.flat(client).view(np.uint8).data]
        self._channel = grpc.insecure_channel(addresses[client], [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
        grpc.channel_ready_future(self._channel).result(60)
        self._call = caller(self._channel, method)

    def send(self) -> bool:
        self._call(self._weight, self._views)
        return True

    def close(self) -> None:
        self._channel.close()


if __name__ == "__main__":
    fleet.serve(Trainer)
