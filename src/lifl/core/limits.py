"""Every limit: what may come from outside, and what may grow.  Sizes are in bytes as packed."""

from __future__ import annotations

NAME_CHARS_MAX = 64
METRICS_MAX = 16
CONTRIBUTION_BYTES_MAX = 1024
WEIGHT_MIN, WEIGHT_MAX = 1e-300, 1e300
"""Of one update.  Together, those of a round are far from the end of float64, and the share of each is a number."""
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
PATTERNS_MAX, PATTERN_CHARS_MAX = 256, 256
"""Patterns of tensors' names in one key of a job's config."""

ROUNDS_REMEMBERED = 16
"""Committed rounds whose members are kept in memory, to answer clients that come back late."""
