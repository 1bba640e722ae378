"""Every limit: what may come from outside, and what may grow.  Sizes are in bytes as packed."""

from __future__ import annotations

NAME_CHARS_MAX = 64
METRICS_MAX = 16
CONTRIBUTION_BYTES_MAX = 1024
TEXT_CHARS_MAX = 4096
ROUNDS_MAX = 1_000_000
CLIENTS_PER_ROUND_MAX = 10_000
FAN_IN_MAX = 64
DEADLINE_S_MAX = 30 * 24 * 3600.0
ARENA_BYTES_MIN = 1 << 24
ARENA_BYTES_MAX = 1 << 44
WORKERS_MAX = 1_000
CAPACITY_MAX = 1e6
CONNECTIONS_MAX = 65_536
STATE_DIR_BYTES_MAX = 90
"""A Unix socket's address holds 107 bytes, and the longest name in the state folder is put behind it."""
OPTIONS_DEPTH_MAX = 8
COUNT_MAX = (1 << 63) - 1
"""Any count, number or size that has no limit of its own: what the database holds, too."""
INCARNATION_MAX = 1 << 53
"""Lives of a node's daemon: each next one still has a number."""
REAL_MAX = 1.7976931348623157e308
"""The largest finite double."""
RATE_PER_S_MAX = 1e9
"""Updates per second at one node."""
BRANCH_UPDATES_MAX = 65_536
"""Updates of one branch: more than one round can select."""
BRANCHES_MAX = 4_096
"""Branches of one round: of each node one, and those that took the places of others."""
COST_BYTES_MAX = 1 << 50
COST_S_MAX = 1e12
"""Of one branch: the sums over `BRANCHES_MAX` still are numbers that can be written."""

ROUNDS_REMEMBERED = 16
"""Committed rounds whose members are kept in memory, to answer clients that come back late."""
