"""A node whose state is set by hand; one event in, and all that it leads to out.

The node, `HERE`, obeys the coordinator of another one; there is one job, number 1, ``j``.  What `handle` returns are
the effects in order; a report stands for the effect that sends it.  After each event the books are compared with each
other (`Engine.validate`), and after each test what was done is replayed from the engine's log.

The arena is a stand-in that counts bytes; a test seals its objects.  Updates of `SMALL` are given to a leaf all
together, those of `LARGE` one by one, the top goes along with those of `HUGE`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.branch import Branch
from lifl.core.agent.branch_runner import BranchRunner
from lifl.core.agent.job_replica import JobReplica
from lifl.core.agent.model_slot import SlotState
from lifl.core.config.aggregation import AggregationSection
from lifl.core.coordinator.nodes import Node
from lifl.core.engine import Engine
from lifl.core.errors import ArenaFull, RemoteFault
from lifl.core.event_log import EventLog, Recording
from lifl.core.ids import Key, Kind, epoch_of, round_of
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.planning.arena_need import round_bytes_min
from lifl.core.planning.tree import Task, TaskState
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm
from lifl.core.protocol.contribution import Contribution, pack_contribution
from lifl.core.schema import Layout, TensorSpec

HERE = 2
NUMBER = 1
EPOCH = epoch_of(1, 1)
SMALL, LARGE, HUGE = 1024, 1 << 20, 4 << 20
"""Elements of an update, each four bytes."""
ROOMY = 1 << 40
PARENT = "home:1"
SCENES: list[Scene] = []
"""Those of the test that runs."""


class Arena:
    """`object_store.ObjectStore` that only counts; keys are numbered from 1."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.objects: dict[Key, tuple[Kind, int, int]] = {}  # with epoch and bytes
        self.contents: dict[Key, list[Contribution]] = {}  # of those that are sealed
        self.damaged: set[Key] = set()
        self.slabs: set[Hashable] = set()
        self.ended: list[int] = []
        self.owners: dict[int, str] = {}
        self.lent: list[Key] = []
        self.made = 0
        self.allows: int | None = None  # so many objects more, whatever is free: the rest is in pieces

    @property
    def used_bytes(self) -> int:
        return sum(nbytes for _, _, nbytes in self.objects.values())

    @property
    def free_bytes(self) -> int:
        return self.nbytes - self.used_bytes

    def alloc(
        self, kind: Kind, job: int, epoch: int, data_bytes: int, meta_bytes: int = 0, slab: Hashable | None = None
    ) -> Key:
        if data_bytes + meta_bytes > self.free_bytes or self.allows == 0:
            raise ArenaFull("the arena is full")
        if self.allows is not None:
            self.allows -= 1
        self.made += 1
        key = Key(self.made, 1, HERE)
        self.objects[key] = (kind, epoch, data_bytes + meta_bytes)
        self.slabs |= {slab} - {None}
        return key

    def free(self, key: Key) -> None:
        del self.objects[key]
        self.contents.pop(key, None)

    def seal(self, key: Key, *clients: str) -> Key:
        """An object is complete, with these clients in it."""
        assert key in self.objects
        self.contents[key] = [Contribution(client, 1.0) for client in clients]
        return key

    def sealed(self, key: Key) -> bool:
        return key in self.contents

    def extent_bytes(self, key: Key) -> int:
        return self.objects[key][2]

    def close_slab(self, slab: Hashable) -> None:
        self.slabs.discard(slab)

    def begin_job(self, job: int, owner: str) -> None:
        self.owners[job] = owner

    def lend(self, key: Key) -> None:
        self.lent.append(key)

    def end_job(self, job: int) -> None:
        self.ended.append(job)

    def epoch_of(self, key: Key) -> int:
        return self.objects[key][1]

    def kind_of(self, key: Key) -> Kind:
        return self.objects[key][0]

    def members(self, key: Key) -> list[Contribution]:
        if key in self.damaged:
            raise RemoteFault("damaged")
        return self.contents[key]

    def of(self, kind: Kind) -> list[Key]:
        """The objects of one kind, in the order of their making."""
        return [key for key, (its, _, _) in self.objects.items() if its is kind]


class Scene:
    """A node with its engine; it is connected to its coordinator, and has nothing yet."""

    def __init__(
        self,
        *,
        elements: int = SMALL,
        arena_bytes: int = ROOMY,
        workers_max: int = 4,
        idle_timeout_s: float = 30.0,
        wait_queue_max: int = 4,
        clients_per_round: int = 8,
        states: tuple[str, ...] = (),
        connected: bool = True,
        **aggregation: Any,
    ) -> None:
        self.layout = Layout((TensorSpec("w", "float32", (elements,)),))
        self.aggregation = AggregationSection(**{"fan_in": 2, "middle_fan_in": 2, **aggregation})
        self.states, self.clients_per_round = states, clients_per_round
        self.arena = Arena(arena_bytes)
        node = Node(HERE, "here:1", 8.0, arena_bytes, workers_max)
        self.now = 0.0
        self.engine = Engine(self.arena, node, idle_timeout_s, wait_queue_max, coordinates=False)
        self.agent = self.engine.agent
        self.keys: dict[str, Key] = {}  # of the clients' updates
        SCENES.append(self)
        if connected:
            self.handle(ev.CoordinatorUp(stranger=False))

    # ---- events ------------------------------------------------------------------------------------------------------

    def handle(self, event: Any, at: float | None = None) -> list[Any]:
        """One event, at the time `at` if it is not that of the last."""
        self.now = at if at is not None else self.now
        effects = self.engine.handle(event, self.now)
        self.engine.validate()
        return [each.report if isinstance(each, fx.SendCoordinator) else each for each in effects]

    def grant(self, client: str, branch: int = 0, epoch: int = EPOCH, direct: bool = False) -> list[Any]:
        """An update is granted; its client ``c5`` has connection 5."""
        led = self.handle(o.Grant(NUMBER, epoch, branch, conn(client), client, 1.0, {}, direct))
        for each in led:
            if isinstance(each, gm.Granted):
                self.keys[client] = Key.unpack(each.key)
        return led

    def seal(self, client: str, received_bytes: int = 10) -> list[Any]:
        """A granted update is complete."""
        self.arena.seal(self.keys[client], client)
        return self.handle(gm.Sealed(conn(client), self.keys[client].pack(), received_bytes))

    def upload(self, client: str, branch: int = 0) -> Key:
        """An update is granted, and complete; its key."""
        self.grant(client, branch)
        self.seal(client)
        return self.keys[client]

    def ready(self, worker: int) -> list[Any]:
        """A worker runs, as process 100 and its number."""
        return self.handle(ev.FromWorker(worker, wm.WorkerReady(worker, 100 + worker, 0)))

    def all_ready(self) -> None:
        """All workers that were forked run."""
        for worker in list(self.agent.pool.workers.values()):
            if worker.state.value == "starting":
                self.ready(worker.number)

    def done(self, task: Task, *clients: str, worker: int | None = None) -> list[Any]:
        """A task's worker has sealed its output, and says so."""
        if task.output is not None:
            self.arena.seal(task.output, *clients)
        cost = wm.TaskDone(task.address, task.attempt, 1.0, 1, len(task.inputs), 0.25, 0.5)
        return self.handle(ev.FromWorker(worker if worker is not None else at(task), cost))

    # ---- the state ---------------------------------------------------------------------------------------------------

    def anew(self) -> None:
        """The state was set by hand: the log begins with it."""
        self.engine.validate()
        self.engine._log = EventLog(self.engine._store, self.engine._copy)

    def has_room(self) -> None:
        """What waits for room looks at it again, as when something is freed: more of it was set by hand."""
        self.agent.quota.gains += 1
        self.anew()

    def open_job(self, number: int = NUMBER, name: str = "j", path: str = "", **more: Any) -> o.OpenJob:
        """The order that makes the job ready; with a path it is loaded here."""
        sizes = (self.clients_per_round, self.layout.tensors, self.states)
        return o.OpenJob(number, name, self.aggregation, *sizes, **{"round": 0, "path": path, **more})

    def has_job(self, number: int = NUMBER, name: str = "j", **more: Any) -> JobReplica:
        """The job is open; its model is elsewhere."""
        self.handle(self.open_job(number, name, **more))
        return self.agent.replicas[number]

    def has_model(self, number: int = NUMBER, name: str = "j", **more: Any) -> JobReplica:
        """The job is open, and its model is here."""
        replica = self.has_job(number, name, **more)
        slot = replica.slot
        slot.model, slot.states = slot.alloc(epoch_of(slot.round, 0), self.states)
        for key in (slot.model, *slot.states.values()):
            self.arena.seal(key)
        slot.state = SlotState.READY
        self.anew()
        return replica

    def has_branch(self, updates: int, branch: int = 0, epoch: int = EPOCH, **more: Any) -> Branch:
        """A branch is open; one without the top brings its partial to `PARENT`."""
        more = {"parent": PARENT if branch else "", **more}
        self.handle(o.OpenBranch(NUMBER, epoch, branch, updates, **more))
        return self.runner(branch, epoch).branch

    @property
    def replica(self) -> JobReplica:
        return self.agent.replicas[NUMBER]

    @property
    def slot(self) -> Any:
        return self.replica.slot

    def runner(self, branch: int = 0, epoch: int = EPOCH) -> BranchRunner:
        return self.replica.runners[epoch, branch]

    def tasks(self, branch: int = 0) -> list[Task]:
        """A branch's tasks: leaves, middles, then the root."""
        return self.runner(branch).branch.tree.tasks

    def tell(self, branch: int = 0) -> list[TaskState]:
        """The states of a branch's tasks."""
        return [task.state for task in self.tasks(branch)]

    def check_replay(self) -> None:
        """What was done leads to the same once more, also by way of a file."""
        Recording.unpack(self.engine.recording().pack()).replay()

    # ---- what is expected --------------------------------------------------------------------------------------------

    def start(self, task: Task, *, attempt: int = 1, expect: int | None = None, worker: int | None = None) -> list[Any]:
        """What is done when a task starts: its worker is told, its address is routed, its keys are sent."""
        spec, top = self.aggregation, task.role == "top"
        segments, accumulators = self.layout.segments, self.layout.accumulators
        epoch = next(r.branch.epoch for r in self.replica.runners.values() if task in r.branch.tree.tasks)
        outputs = self.runner(0, epoch)._outputs.states if top else {}
        told = wm.TaskStart(
            address=task.address,
            attempt=attempt,
            role=task.role,
            job="j",
            round=round_of(epoch),
            rule=spec.rule,
            options=spec.options,
            rule_folder=spec.rule_folder,
            eager=spec.timing == "eager",
            expect=expect if expect is not None else task.expect,
            parent=task.parent.address if task.parent is not None else 0,
            output=task.output.pack() if task.output is not None else b"",
            inputs=segments if task.role == "leaf" else accumulators,
            outputs=segments if top else accumulators,
            model_segments=segments,
            model=self.slot.model.pack() if top else b"",
            states={name: key.pack() for name, key in self.slot.states.items()} if top else {},
            new_states={name: key.pack() for name, key in outputs.items()},
        )
        worker = worker if worker is not None else at(task)
        sent = [fx.SendKeys(task.address, attempt, tuple(task.inputs))] if task.inputs else []
        return [fx.SendWorker(worker, told), fx.Route(task.address, worker), *sent]

    def need(self, states: int = 0) -> int:
        """What a round of the job needs of the arena at the least."""
        return round_bytes_min(self.layout, self.aggregation, self.clients_per_round, states)

    @property
    def update_bytes(self) -> int:
        """What an update takes of the arena."""
        return self.layout.data_bytes + CONTRIBUTION_BYTES_MAX

    def partial_bytes(self, members_max: int) -> int:
        """What a partial of so many members takes of the arena."""
        return self.layout.accumulator_bytes + members_max * CONTRIBUTION_BYTES_MAX


def conn(client: str) -> int:
    """The connection of a client."""
    return int(client[1:])


def at(task: Task) -> int:
    """The worker that has a task."""
    assert task.worker is not None
    return task.worker


def granted(client: str, key: Key) -> gm.Granted:
    """What the gateway is told of an update that may come."""
    return gm.Granted(conn(client), key.pack(), pack_contribution(Contribution(client, 1.0)))


def sealed(client: str, branch: int = 0, epoch: int = EPOCH, received_bytes: int = 10) -> o.UpdateSealed:
    """The report of a sealed update."""
    return o.UpdateSealed(NUMBER, epoch, branch, client, received_bytes)


def aborted(client: str, branch: int = 0, epoch: int = EPOCH, number: int = NUMBER) -> o.UpdateAborted:
    """The report of an update that will not come."""
    return o.UpdateAborted(number, epoch, branch, client)


def members(*clients: str) -> o.Contributions:
    """Clients as they are told of, each with weight 1."""
    return tuple((client, 1.0, {}) for client in clients)


def orphan(key: Key, kind: Kind, *clients: str, epoch: int = EPOCH) -> ev.Orphan:
    """What an earlier life has left."""
    return key, kind, epoch, [Contribution(client, 1.0) for client in clients]


def too_late(connection: int, number: int = 1) -> gm.TellClient:
    """What a client is told whose grant comes to nothing."""
    text = f"round {number} of job 'j' takes no more updates; wait for the next selection"
    return told(connection, cm.Refusal("round-over", "round", text, "j", number))


def told(connection: int, message: Any) -> gm.TellClient:
    """What a client is told."""
    return gm.TellClient(connection, cm.packed(message))


def inventory(jobs: Sequence[int] = (), branches: Sequence[p.BranchHeld] = (), orphans: Sequence[int] = ()) -> Any:
    """What a node has."""
    return p.Inventory(tuple(jobs), tuple(branches), tuple(orphans))


def costs(branch: Branch, **more: Any) -> Mapping[str, Any]:
    """A branch's part of the receipt, as far as it is not said otherwise."""
    return branch.cost.as_dict() | {"tree": branch.lines()} | more
