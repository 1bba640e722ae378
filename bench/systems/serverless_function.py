"""An aggregator function of SL: started cold, it fetches its inputs, folds them when all are there, and ends.

    python -m systems.serverless_function PLACE PROXY_PORT BYTES

All that it gets and gives goes through the haproxy beside it.
"""

from __future__ import annotations

import sys

import numpy as np

from systems.broker import connected
from systems.folding import Floats, fold, scale


def main() -> None:
    """Live one life."""
    place, port, nbytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    broker = connected(port)
    inputs: list[tuple[Floats, float]] = []
    while True:
        _, message = broker.blpop(f"inbox-{place}")
        if message == b"end":
            break
        name, weight = message.decode().split()
        inputs.append((np.frombuffer(broker.getdel(name), np.float32), float(weight)))
    total = np.empty(nbytes // 4, np.float32)
    for number, (numbers, weight) in enumerate(inputs):
        # A partial's numbers are weighted already.
        fold(total, numbers, 1.0 if place == "top" else weight, first=number == 0)
    weights = sum(weight for _, weight in inputs)
    if place == "top":
        scale(total, 1 / weights)
        broker.set("model", total.view(np.uint8).data)
        broker.rpush("events", "model model 1")
    else:
        broker.set(f"partial-{place}", total.view(np.uint8).data)
        broker.rpush("events", f"partial partial-{place} {weights}")


if __name__ == "__main__":
    main()
