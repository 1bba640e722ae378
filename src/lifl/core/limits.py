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

ROUNDS_REMEMBERED = 16
"""Committed rounds whose members are kept in memory, to answer clients that come back late."""

FILE_RETRY_S = 1.0
"""After how long a file that could not be read or written is tried again; each further wait is twice as long."""
FILE_RETRY_S_MAX = 30.0
DATABASE_RETRY_S = 0.5
"""The same for a row that the database did not take."""
DATABASE_RETRY_S_MAX = 10.0
PAGE_BYTES_MAX = 4 * 1024 * 1024
"""Lines in one answer to the command line, as packed: half of a frame, for a job's config stands beside them."""
STATUS_ROUNDS = 100
"""Rounds that `lifl status` shows when it is not told how many."""
CONFIG_BYTES_MAX = 1024 * 1024
"""A job's config, as packed: it travels with each view of the job, and parts of it with each task."""
