"""The two ends of a hand-off through the broker of SL, each with its own proxy.

python -m systems.serverless_handoff send|receive PROXY_PORT BYTES
"""

from __future__ import annotations

import sys
import time

import numpy as np
from measure import answer, orders

from systems.broker import connected


def main() -> None:
    """Do a hand-off for each order."""
    role, port, nbytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    broker = connected(port)
    numbers = np.ones(nbytes // 4, np.float32)
    answer(ready=True)
    for _ in orders():
        if role == "send":
            begun_ns = time.monotonic_ns()
            broker.set("partial", numbers.view(np.uint8).data)
            broker.rpush("inbox", "partial")
            answer(begun_ns=begun_ns)
        else:
            _, name = broker.blpop("inbox")
            came = np.frombuffer(broker.getdel(name), np.float32)
            touched = float(came[0] + came[len(came) // 2] + came[-1])
            answer(received_ns=time.monotonic_ns(), touched=touched)


if __name__ == "__main__":
    main()
