"""The messages between `lifld` and its zygote, and between `lifld` and each worker.

The zygote forks workers; a worker runs tasks.  Each has a link to the daemon of its own.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lifl.core.fields import Count, KeyBytes, Message, Name, Tensors, Text
from lifl.core.protocol.gateway import Drain
from lifl.core.schema import Segment, Treated

# ---- zygote ⇄ lifld --------------------------------------------------------------------------------------------------


class ZygoteReady(Message, frozen=True):
    """NumPy is loaded, the arena is mapped."""

    pid: int


class Fork(Message, frozen=True):
    """Fork worker `worker`; its control socket and its port's descriptors follow by SCM_RIGHTS on the same stream.

    `port` is what `redirect.open_port` needs beside the descriptors.
    """

    worker: int
    port: dict[str, Any]
    descriptors: int


class Forked(Message, frozen=True):
    """The worker's process."""

    worker: int
    pid: int


class Exited(Message, frozen=True):
    """A worker's process has ended; `status` is waitpid's."""

    worker: int
    pid: int
    status: int


class Calibrate(Message, frozen=True):
    """Fork a process that measures how many folds the machine runs at a time, at most `most`, and ends."""

    most: int


class Calibrated(Message, frozen=True):
    """MC in updates at a time, as it was measured (`rules/calibration.py`)."""

    capacity: float


FromZygote = ZygoteReady | Forked | Exited | Calibrated
ToZygote = Fork | Calibrate | Drain


# ---- lifld → worker --------------------------------------------------------------------------------------------------


class TaskStart(Message, frozen=True):
    """Run one task.  Its inputs come as records to `address`; `expect` of them complete it (Expect may lower it).

    `output` is the object to fold into and to seal.  `inputs` are the segments of each input (updates: the layout's;
    partials: the accumulators'), `outputs` those of the output, `model_segments` the model's.  For role ``top`` also:
    updates may come among the partials; `model` is the current model's key, `states` the rule's state objects by name
    to read, `new_states` those to write and seal.  `parent` is the address that gets the output's key (0: the daemon
    only).  `treated` are numbers that are not treated as the others of the model's segments.
    """

    address: int
    attempt: int
    role: str
    job: Name
    round: Count
    rule: str
    options: dict[str, Any]
    rule_folder: str
    eager: bool
    expect: int
    parent: int
    output: KeyBytes
    inputs: tuple[Segment, ...]
    outputs: tuple[Segment, ...]
    model_segments: tuple[Segment, ...] = ()
    model: bytes = b""
    states: dict[str, bytes] = msgspec.field(default_factory=dict)
    new_states: dict[str, bytes] = msgspec.field(default_factory=dict)
    treated: tuple[Treated, ...] = ()


class Expect(Message, frozen=True):
    """The task is complete with `expect` inputs (the round closed early)."""

    address: int
    attempt: int
    expect: int


class Arriving(Message, frozen=True):
    """What a top lacks, should nothing happen to it: key, weight and bytes so far of each update that is under way.

    It says no more than that: an update counts when its key comes to the task, and another may come in its place.
    """

    address: int
    attempt: int
    updates: tuple[tuple[KeyBytes, float, Count], ...]


class Drop(Message, frozen=True):
    """Forget the task; its output will be freed once TaskDropped is answered."""

    address: int
    attempt: int


class Checkpoint(Message, frozen=True):
    """Write `model` (and the rule's `states`) as safetensors to `path` (`state_path`), durably, all or nothing."""

    address: int
    attempt: int
    job: Name
    round: Count
    path: str
    tensors: Tensors
    model: KeyBytes
    state_path: str = ""
    states: dict[str, bytes] = msgspec.field(default_factory=dict)


class Load(Message, frozen=True):
    """Read the safetensors file at `path` into the object `output`, which has the layout of `tensors`, and seal it.

    `states`: rule state objects by name, read from `state_path` (zero-filled when `state_path` is empty).
    """

    address: int
    attempt: int
    job: Name
    path: str
    tensors: Tensors
    output: bytes
    state_path: str = ""
    states: dict[str, bytes] = msgspec.field(default_factory=dict)


class Retire(Message, frozen=True):
    """No task is left: exit 0."""


ToWorker = TaskStart | Expect | Arriving | Drop | Checkpoint | Load | Retire


# ---- worker → lifld --------------------------------------------------------------------------------------------------


class WorkerReady(Message, frozen=True):
    """The worker runs; `ready_ns` is its monotonic clock at that."""

    worker: int
    pid: int
    ready_ns: int


class TaskDone(Message, frozen=True):
    """The output is sealed: `weight` its Σw, `members` how many updates are in it; costs for the receipt.

    `started_ns` is the worker's monotonic clock when it began (for benchmarks).
    """

    address: int
    attempt: int
    weight: float
    members: int
    inputs: int
    cpu_s: float
    busy_s: float
    started_ns: int = 0


class TaskFailed(Message, frozen=True):
    """The task cannot be done (the user's rule raised, a file cannot be written): `text` is for people.

    `element`, when not negative, is the one of the model's numbers of `dtype` that is not finite.
    """

    address: int
    attempt: int
    text: Text
    retry: bool = False
    dtype: str = ""
    element: int = -1


class TaskDropped(Message, frozen=True):
    """The task of a Drop is forgotten."""

    address: int
    attempt: int


FromWorker = WorkerReady | TaskDone | TaskFailed | TaskDropped
