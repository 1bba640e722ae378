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
OPTIONS_BYTES_MAX = 64 * 1024
"""The options of a rule, and those of a job's clients: each goes to whoever needs it once, not with each update."""

FRAME_BYTES_MAX = 8 * 1024 * 1024
"""A frame of any channel; the largest carry the schema of a model with tens of thousands of tensors."""
SCHEMA_BYTES_MAX = 7 * 1024 * 1024
"""The names, dtypes and shapes of a model's tensors: what is beside them in a frame has the rest of it."""
SCHEMAS_BYTES_MAX = 24 * 1024 * 1024
"""The schemas of all jobs that run: a new gateway, and a node that joins, is told all of them at once."""
MEMBERS_PER_FRAME_MAX = 4_096
"""Clients with their metrics in one frame between nodes (of `CONTRIBUTION_BYTES_MAX` each): more go in pages."""
PAGES_MAX = 64
INVENTORY_BYTES_MAX = 32 * 1024 * 1024
"""The contributions in all pages of one Inventory: what is beyond counts as lost, and is asked for again."""
COST_LINES_MAX = 2_048
"""Tasks of one branch that its cost, and of one round that its receipt, has a line for."""
ROUND_METRICS_MAX = 256
"""Names of metrics that a round's means are taken of: those that most of its clients sent."""
REASON_BYTES_MAX = 400
"""What all clients of a round are told of the reason why it ended."""
LINK_WAITING_BYTES_MAX = 64 * 1024 * 1024
"""What may wait for a slow peer of a link: a few of the largest frames, or what one event says to all clients."""
TENSORS_MAX = 65_536
DIMENSIONS_MAX = 32
TENSOR_NAME_CHARS_MAX = 256
DTYPE_CHARS_MAX = 16
DIGEST_BYTES = 32

ROUNDS_REMEMBERED = 16
"""Committed rounds whose members are kept in memory, to answer clients that come back late."""
