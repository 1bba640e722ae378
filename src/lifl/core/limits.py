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
TASK_DEADLINE_S = 300.0
"""How long a task that has all its inputs may take where the job does not say (`aggregation.task_deadline_s`)."""
ARENA_BYTES_MIN = 1 << 24
ARENA_BYTES_MAX = 1 << 44
WORKERS_MAX = 1_000
CAPACITY_MAX = 1e6
CONNECTIONS_MAX = 65_536
STATE_DIR_BYTES_MAX = 90
"""A Unix socket's address holds 107 bytes, and the longest name in the state folder is put behind it."""
OPTIONS_DEPTH_MAX = 8

GATEWAYS_TOLD_MAX = 16
"""Other nodes' gateways that a client is told, and keeps."""
GATEWAY_CHARS_MAX = 280
FEATURES_MAX = 16
FEATURE_CHARS_MAX = 32
"""What a peer says it knows, when it says Hello or Welcome."""

ROUNDS_REMEMBERED = 16
"""Committed rounds whose members are kept in memory, to answer clients that come back late."""
