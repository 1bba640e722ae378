"""Clients of Flower for the benchmark: many nodes in one process, each over the connection that a SuperNode has.

    <the environment of Flower>/bin/python flower_clients.py ADDRESS FIRST COUNT WORKLOAD-FILE

Each node is a thread with `http_request_response`, the SuperNode's own connection with its heartbeats, and sends its
reply with the SuperNode's own functions; what is left out is the ClientApp's process between them.  So a hundred nodes
fit on a machine, and what the server does is not touched.

Orders come as lines of JSON on stdin, answers go to stdout: ``prepare`` pulls the round's message at each of the named
nodes and makes the whole reply (serialised and hashed, as a SuperNode has it when it begins to send); ``send`` sends
each at its time and answers with the instants of the first byte and of the last that was acknowledged.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
    push_object_contents_from_iterable,
)
from flwr.supernode.fleet_http_connection import http_request_response

sys.path.append(str(Path(__file__).resolve().parent.parent))
import workload

PULL_S = 60.0
PAUSE_S = 0.1
"""Between two looks for a message; Flower's own SuperNode waits 3 s, and has nothing better than looking either."""


class FlowerNode:
    """One node: its connection and the reply that it has ready."""

    def __init__(self, address: str, client: int, stack: ExitStack) -> None:
        self.client = client
        connection = stack.enter_context(http_request_response(address, insecure=True))
        _, self._receive, self._send, _, _, self._pull, self._push, self._confirm = connection
        self._ready: tuple[Message, Any, dict[str, bytes]] | None = None

    def take(self) -> Message:
        """Return the message of the round, complete.  Raise `TimeoutError`."""
        deadline = time.monotonic() + PULL_S
        while (received := self._receive()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"client {self.client}: no message of the round within {PULL_S} s")
            time.sleep(PAUSE_S)
        message, tree = received
        run, name = message.metadata.run_id, message.metadata.message_id
        contents = pull_objects([each.object_id for each in iterate_object_tree(tree)], lambda i: self._pull(run, i))
        self._confirm(run, name)
        whole = inflate_object_from_contents(name, contents)
        whole.metadata.__dict__["_message_id"] = name
        return whole  # type: ignore[no-any-return]

    def prepare(self, message: Message, arrays: dict[str, Any], metrics: dict[str, float]) -> None:
        """Make the reply as a SuperNode keeps it."""
        record = ArrayRecord({name: Array(values) for name, values in arrays.items()})
        reply = Message(RecordDict({"arrays": record, "metrics": MetricRecord(metrics)}), reply_to=message)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            tree = get_object_tree(reply)
            contents = {name: each.deflate() for name, each in get_all_nested_objects(reply).items()}
        self._ready = reply, tree, contents

    def send(self) -> tuple[int, int]:
        """Send the reply; return the instants of its begin and its end."""
        assert self._ready is not None
        (reply, tree, contents), self._ready = self._ready, None
        begun_ns = time.monotonic_ns()
        wanted, session = self._send(reply, tree, 0.0)
        ordered = dict.fromkeys(each.object_id for each in iterate_object_tree(tree))
        push = partial(self._push, reply.metadata.run_id, session)
        push_object_contents_from_iterable(((i, contents.pop(i)) for i in ordered if i in wanted), push_object_fn=push)
        return begun_ns, time.monotonic_ns()


class Clients:
    """The nodes of this process."""

    def __init__(self, address: str, first: int, count: int, load: workload.Workload, stack: ExitStack) -> None:
        self._load = load
        self._pool = stack.enter_context(ThreadPoolExecutor(count))
        made = self._pool.map(lambda client: FlowerNode(address, client, stack), range(first, first + count))
        self._nodes = {node.client: node for node in made}

    def prepare(self, clients: list[int]) -> dict[str, Any]:
        """Have each of these nodes take the message and make its reply."""

        def one(node: FlowerNode) -> None:
            arrays = self._load.update(node.client)
            weight = self._load.weight(node.client)
            node.prepare(node.take(), arrays, {"num-examples": weight, "client": float(node.client)})

        list(self._pool.map(one, [self._nodes[client] for client in clients]))
        return {"prepared": len(clients)}

    def send(self, start_ns: int, arrivals: list[tuple[float, int]]) -> dict[str, Any]:
        """Send at `at_s` after the start."""
        never = threading.Event()

        def one(arrival: tuple[float, int]) -> tuple[int, int]:
            at_s, client = arrival
            never.wait(max(0.0, at_s + (start_ns - time.monotonic_ns()) / 1e9))
            return self._nodes[client].send()

        times = list(self._pool.map(one, sorted(arrivals)))
        return {"begun_ns": min(b for b, _ in times), "ended_ns": max(e for _, e in times)} if times else {}


def main() -> None:
    """Obey until stdin ends."""
    address, first, count, described = sys.argv[1:]
    load = workload.from_json(Path(described).read_text())
    out = sys.stdout
    sys.stdout = sys.stderr  # for what Flower prints
    with ExitStack() as stack:
        clients = Clients(address, int(first), int(count), load, stack)
        print(json.dumps({"connected": int(count)}), file=out, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            answer = getattr(clients, order.pop("do"))(**order)
            print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
