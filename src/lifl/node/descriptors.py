"""How many descriptors the processes of a node need; their limit is raised to what is allowed when a node starts.

The soft limit is only a default, often 1,024; the hard one is the administrator's word.  `lifld` raises its own, and
what it starts inherits that.
"""

from __future__ import annotations

import resource

from lifl.core.agent.quota import LOANS_MAX
from lifl.core.config.node import NodeConfig
from lifl.core.errors import ResourceFault
from lifl.core.limits import CLI_CONNECTIONS_MAX, GREETINGS_MAX, JOBS_MAX, NODES_MAX, SEGMENTS_ENDED_MAX

CONNECTIONS = 10_240
"""Connections that a gateway serves, unless it is told how many, or has fewer descriptors."""
GATEWAY_RESERVED = 128
"""Of a gateway beside one per connection: listeners, link, arena, ways to other nodes, peers being turned away."""
LIFLD_RESERVED = 128
"""Of `lifld` itself: the database, logs, locks, the arena, its children's links and pipes, the redirector's maps."""
SEGMENTS = JOBS_MAX + SEGMENTS_ENDED_MAX
"""Of either: the segments of the arena, one for each job."""
PER_WORKER = 4
"""Of `lifld` for each worker: its link, the redirector's end of its channel, and theirs until they are handed over."""


def gateway_needs(connections_max: int) -> int:
    """Return the descriptors of a gateway that serves so many connections."""
    return connections_max + GATEWAY_RESERVED + SEGMENTS


def lifld_needs(workers: int, clustered: bool) -> int:
    """Return the descriptors of a `lifld` that has so many workers, and is in a cluster or not."""
    peers = NODES_MAX + GREETINGS_MAX if clustered else 0
    return LIFLD_RESERVED + LOANS_MAX + SEGMENTS + CLI_CONNECTIONS_MAX + PER_WORKER * workers + peers


def connections_max(config: NodeConfig) -> int:
    """Return the most connections: what is configured, or what is usual and the hard limit allows, one at the least."""
    hard = hard_limit()
    allowed = CONNECTIONS if hard is None else min(CONNECTIONS, hard - gateway_needs(0))
    return config.connections_max or max(1, allowed)


def node_needs(config: NodeConfig, workers: int) -> int:
    """Return the descriptors that each process of a node must be allowed, as the one does that needs most."""
    clustered = bool(config.control or config.join)
    return max(gateway_needs(connections_max(config)), lifld_needs(workers, clustered))


def hard_limit() -> int | None:
    """Return how many descriptors this process may have at most; None: as many as it likes."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def raise_limit(needed: int, what: str) -> None:
    """Raise the soft limit to the hard one.  Raise `ResourceFault` when that is less than is `needed`, for `what`."""
    hard = hard_limit()
    if hard is not None and hard < needed:
        raise ResourceFault(
            f"{what} need {needed} descriptors, this process may have {hard}: raise the limit (ulimit -Hn, or"
            " LimitNOFILE= in the unit file), or set a smaller connections_max or workers_max"
        )
    limit = resource.RLIM_INFINITY if hard is None else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def raise_for_node(config: NodeConfig, workers: int) -> None:
    """Let the processes of a node have the descriptors that they need.  Raise `ResourceFault`."""
    what = f"{connections_max(config)} connections (connections_max) and {workers} workers (workers_max)"
    raise_limit(node_needs(config, workers), what)
