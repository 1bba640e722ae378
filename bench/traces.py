"""When clients begin to send, in the three ways that rounds are measured.

``at once``: all at the same moment.  ``steady``: one after the other, as fast as a link of `LINK_BYTES_PER_S` brings
them.  ``bursts``: a day of devices in short.  The rate follows a sine from a quiet night to a busy evening, devices
come in clusters (a bus arrives, a class ends), and one in ten is a straggler that comes when the day is over.
"""

from __future__ import annotations

import math
import random

from systems.interface import Arrival

LINK_BYTES_PER_S = 500e6
DAY_TIMES = 2.0
"""The day is so many times as long as the steady arrival of the same clients."""
CLUSTER = 4
CLUSTER_SPREAD = 0.01
STRAGGLERS = 0.1
LATE = (1.0, 1.3)


def arrivals(pattern: str, clients: int, nbytes: int, seed: int) -> list[Arrival]:
    """Return one arrival of each client from 0 to `clients` - 1, in the order of time.  Raise `ValueError`."""
    steady_s = clients * nbytes / LINK_BYTES_PER_S
    if pattern == "at once":
        times = [0.0] * clients
    elif pattern == "steady":
        times = [steady_s * number / clients for number in range(clients)]
    elif pattern == "bursts":
        times = _bursts(clients, steady_s * DAY_TIMES, random.Random(seed))
    else:
        raise ValueError(f"{pattern!r} is no pattern of arrivals")
    return [Arrival(at_s, client) for client, at_s in enumerate(times)]


def _bursts(clients: int, day_s: float, chance: random.Random) -> list[float]:
    late = round(clients * STRAGGLERS)
    times: list[float] = []
    while len(times) < clients - late:
        # Of a rate 1 - cos(2 pi t): by rejection.
        moment = chance.random()
        if 2 * chance.random() <= 1 - math.cos(2 * math.pi * moment):
            cluster = min(chance.randint(1, 2 * CLUSTER - 1), clients - late - len(times))
            times += [min(1.0, moment + CLUSTER_SPREAD * chance.random()) * day_s for _ in range(cluster)]
    times += [chance.uniform(*LATE) * day_s for _ in range(late)]
    return sorted(times)
