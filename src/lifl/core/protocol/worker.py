"""The messages between `lifld` and its zygote, and between `lifld` and each worker.

The zygote forks workers; a worker runs tasks.  Each has a link to the daemon of its own.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from lifl.core.fields import (
    AnyKey,
    Bits64,
    Capacity,
    Count,
    Digests,
    DtypeName,
    ExitStatus,
    Integer,
    KeyBytes,
    Message,
    Metrics,
    Name,
    PackedTensors,
    Path,
    Pid,
    Places,
    RuleName,
    Segments,
    StateKeys,
    Suspects,
    TaskSeconds,
    Text,
    Treatment,
    Word,
)
from lifl.core.limits import CLIENTS_PER_ROUND_MAX, RULE_CHARS_MAX
from lifl.core.planning.treatment import Patterns
from lifl.core.protocol.gateway import Drain
from lifl.core.protocol.user_calls import Answer, Given

# ---- zygote ⇄ lifld --------------------------------------------------------------------------------------------------


class ZygoteReady(Message, frozen=True):
    """NumPy is loaded, the arena is mapped; `landlock` is the version that holds it and its workers, 0: none."""

    pid: Pid
    landlock: Count = 0


class Fork(Message, frozen=True):
    """Fork worker `worker`; its control socket and its port's descriptors follow by SCM_RIGHTS on the same stream.

    `port` is what `redirect.open_port` needs beside the descriptors.
    """

    worker: Count
    port: dict[str, Any]
    descriptors: Count


class Forked(Message, frozen=True):
    """The worker's process."""

    worker: Count
    pid: Pid


class Exited(Message, frozen=True):
    """A worker's process has ended; `status` is waitpid's."""

    worker: Count
    pid: Pid
    status: ExitStatus


class Calibrate(Message, frozen=True):
    """Fork a process that measures how many folds the machine runs at a time, at most `most`, and ends."""

    most: Count


class Calibrated(Message, frozen=True):
    """MC in updates at a time, as it was measured (`rules/calibration.py`)."""

    capacity: Capacity


FromZygote = ZygoteReady | Forked | Exited | Calibrated
ToZygote = Fork | Calibrate | Drain


# ---- lifld → worker --------------------------------------------------------------------------------------------------


class TaskStart(Message, frozen=True):
    """Run one task.  Its inputs come as records to `address`; `expect` of them complete it (Expect may lower it).

    `output` is the object to fold into and to seal.  `inputs` are the segments of each input (updates: the layout's;
    partials: the accumulators'), `outputs` those of the output, `model_segments` the model's; a partial may come to a
    ``leaf``, too, where each takes that of the one before.  For role ``top`` also: updates may come among the partials;
    `model` is the current model's key, `states` the rule's state objects by name to read, `new_states` those to write
    and seal.  `parent` is the address that gets the output's key (0: the daemon only).  `treated` are numbers that are
    not treated as the others of the model's segments.  `places` are the model's tensors where an input may lack some of
    them (`contribution.Contribution.absent`); else there are none.
    """

    address: Count
    attempt: Count
    role: Word
    job: Name
    round: Count
    rule: Annotated[str, msgspec.Meta(max_length=RULE_CHARS_MAX)]
    options: dict[str, Any]
    rule_folder: Path
    eager: bool
    expect: Count
    parent: Count
    output: KeyBytes
    inputs: Segments
    outputs: Segments
    model_segments: Segments = ()
    model: AnyKey = b""
    states: StateKeys = msgspec.field(default_factory=dict)
    new_states: StateKeys = msgspec.field(default_factory=dict)
    treated: Treatment = ()
    places: Places = ()


class Expect(Message, frozen=True):
    """The task is complete with `expect` inputs (the round closed early)."""

    address: Count
    attempt: Count
    expect: Count


class Arriving(Message, frozen=True):
    """What a top lacks, should nothing happen to it: key, weight and bytes so far of each update that is under way.

    It says no more than that: an update counts when its key comes to the task, and another may come in its place.
    `sums` is an object of accumulators in which to sum up what is there already, until the task ends (empty: none).
    """

    address: Count
    attempt: Count
    updates: Annotated[tuple[tuple[KeyBytes, float, Count], ...], msgspec.Meta(max_length=CLIENTS_PER_ROUND_MAX)]
    sums: AnyKey = b""


class Drop(Message, frozen=True):
    """Forget the task; its output will be freed once TaskDropped is answered."""

    address: Count
    attempt: Count


class Checkpoint(Message, frozen=True):
    """Write `model` (and the rule's `states`) as safetensors to `path` (`state_path`), durably, all or nothing.

    `tensors` are the model's, packed.  The files name the job, its `number` and node, the round and its `epoch`;
    TaskDone has their digests.  `node` wrote what this is a copy of (0: it is none).
    """

    address: Count
    attempt: Count
    job: Name
    round: Count
    path: Path
    tensors: PackedTensors
    model: KeyBytes
    state_path: Path = ""
    states: StateKeys = msgspec.field(default_factory=dict)
    number: Count = 0
    epoch: Count = 0
    node: Bits64 = 0


class Load(Message, frozen=True):
    """Read the safetensors file at `path` into the object `output`, of the layout of `tensors` (packed), and seal it.

    `states`: rule state objects by name, read from `state_path` (zero-filled when `state_path` is empty).
    With `round` it must be the checkpoint of that round of job `number` of this node, and the files' digests must be
    `digests` as far as these are known.  `patterns` name what is not averaged.
    """

    address: Count
    attempt: Count
    job: Name
    path: Path
    tensors: PackedTensors
    output: AnyKey
    state_path: Path = ""
    states: StateKeys = msgspec.field(default_factory=dict)
    number: Count = 0
    round: Count | None = None
    digests: Digests = ()
    patterns: Patterns = Patterns()


class Evaluate(Message, frozen=True):
    """Give `model`, of the layout of `tensors` (packed), to the user's `function` (module:function, of this `folder`).

    TaskDone has the metrics that it returns.
    """

    address: Count
    attempt: Count
    job: Name
    round: Count
    function: RuleName
    folder: Path
    tensors: PackedTensors
    model: KeyBytes


class Call(Message, frozen=True):
    """Call the user's `function` (module:function, of this `folder`), which the job's `key` names, with what is given.

    The job has the `number`, by which the worker is held to what is the job's.  TaskDone has the answer.
    """

    address: Count
    attempt: Count
    job: Name
    number: Count
    key: Word
    function: RuleName
    folder: Path
    given: Given


class Retire(Message, frozen=True):
    """No task is left: exit 0."""


ToWorker = TaskStart | Expect | Arriving | Drop | Checkpoint | Load | Evaluate | Call | Retire


# ---- worker → lifld --------------------------------------------------------------------------------------------------


class WorkerReady(Message, frozen=True):
    """The worker runs; `ready_ns` is its monotonic clock at that."""

    worker: Count
    pid: Pid
    ready_ns: Count


class TaskDone(Message, frozen=True):
    """The output is sealed: `weight` its Σw, `members` how many updates are in it; costs for the receipt.

    `started_ns` is the worker's monotonic clock when it began (for benchmarks).  `digests`: of the files of a
    Checkpoint; `metrics`: what an Evaluate has found; `answer`: what the function of a Call has returned.
    """

    address: Count
    attempt: Count
    weight: float
    members: Count
    inputs: Count
    cpu_s: TaskSeconds
    busy_s: TaskSeconds
    started_ns: Count = 0
    digests: Digests = ()
    metrics: Metrics = msgspec.field(default_factory=dict)
    answer: Answer = b""


class TaskFailed(Message, frozen=True):
    """The task cannot be done (the user's rule raised, a file cannot be written): `text` is for people.

    `retry`: the same may work later, when a file's disk has room again, or is there.  `element`, when not negative, is
    the one of the model's numbers of `dtype` that is not finite, and `suspects` are those whose update may be why: it
    may be anyone's when none is named.
    """

    address: Count
    attempt: Count
    text: Text
    retry: bool = False
    dtype: DtypeName = ""
    element: Integer = -1
    suspects: Suspects = ()


class TaskDropped(Message, frozen=True):
    """The task of a Drop is forgotten."""

    address: Count
    attempt: Count


FromWorker = WorkerReady | TaskDone | TaskFailed | TaskDropped
