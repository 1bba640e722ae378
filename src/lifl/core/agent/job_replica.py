"""A job at one node: its model and the rule's state in the arena, its branches, and the tasks for its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from lifl.core import effects as fx
from lifl.core.agent.branch import Branch
from lifl.core.agent.branch_runner import Aggregation
from lifl.core.agent.quota import Memory
from lifl.core.config.job import AggregationSection
from lifl.core.errors import ArenaFull, LocalFault, RemoteFault
from lifl.core.fields import Message
from lifl.core.ids import Key, Kind, epoch_of, round_of
from lifl.core.limits import CONTRIBUTION_BYTES_MAX, TEXT_CHARS_MAX
from lifl.core.planning.tree import TAIL_MAX, Task, TaskState, Tree
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm
from lifl.core.protocol.contribution import Contribution, pack_contribution
from lifl.core.schema import Layout

PAGE_BYTES = 4096

Orphan = tuple[Key, Kind, int, list[Contribution]]
"""A sealed object of a killed daemon: its key, kind, epoch and members."""


class Services(Protocol):
    """What a job's site needs of the agent."""

    memory: Memory

    def emit(self, effect: fx.Effect) -> None: ...

    def report(self, report: o.Report) -> None: ...

    def open_address(self, site: JobSite, task: Task) -> int: ...

    def close_address(self, address: int) -> None: ...

    def place(self, site: JobSite, task: Task, served: int) -> None: ...

    def pid_of(self, worker: int) -> int: ...

    def abandon(self, site: JobSite, task: Task, outputs: list[Key]) -> None: ...

    def abandon_fetch(self, key: Key) -> None: ...

    def follow(self, key: Key) -> None: ...

    def rest(self, key: Key) -> None: ...


def told(members: Iterable[Contribution]) -> o.Contributions:
    """Members as they are told to the coordinator."""
    return tuple((member.client, member.weight, member.metrics) for member in members)


def round_bytes_min(layout: Layout, aggregation: AggregationSection, goal: int, states: int, partials: int = 0) -> int:
    """What a round needs of an arena at the least, pages rounded up: `lifl submit` refuses beyond it.

    The old and the new model with the rule's states, the partial of a round that is being saved, the partials of
    one path of the tree (which has places for `partials` of other nodes), the updates of one leaf or of the top.
    """
    tree = Tree(goal, aggregation.fan_in, aggregation.middle_fan_in, partials)
    meta = goal * CONTRIBUTION_BYTES_MAX
    model = 2 * (layout.data_bytes + states * layout.accumulator_bytes + PAGE_BYTES)
    partials = (tree.partials_held_max() + 2) * (layout.accumulator_bytes + meta + PAGE_BYTES)
    updates = min(goal, max(aggregation.fan_in, TAIL_MAX)) * (layout.data_bytes + CONTRIBUTION_BYTES_MAX + PAGE_BYTES)
    return model + partials + updates


class JobSite:
    """One job on one node, as its agent sees it."""

    def __init__(self, order: o.OpenJob, services: Services) -> None:
        self.order = order
        self.number = order.number
        self.name = order.job
        self.aggregation_config = order.aggregation
        self.layout = Layout(order.tensors)
        self.state_names = order.states
        self.services = services
        self.open = not order.path  # a model without a file is fetched when somebody needs it
        self.ready = self.open  # what its file holds is loaded
        self.model: Key | None = None
        self.round = order.round  # the round of the job's current model, wherever it is
        self.source = ""  # the gateway that has it
        self.fetching: Key | None = None
        self.wanting: dict[int, int] = {}  # connections that wait for the model, with the round that they named
        self.states: dict[str, Key] = {}
        self.pins: Counter[Key] = Counter()
        self.doomed: set[Key] = set()
        self.branches: dict[tuple[int, int], Branch] = {}  # by epoch and number
        self.orphans: list[Orphan] = []
        self.files: dict[int, tuple[Task, o.SaveModel | None]] = {}  # by address: tasks that read or write files
        self.aggregation = Aggregation(self)

    # ---- the arena ---------------------------------------------------------------------------------------------

    @property
    def acc_bytes(self) -> int:
        """The bytes of a partial's tensors."""
        return self.layout.accumulator_bytes

    def alloc_model(self, epoch: int, state_names: tuple[str, ...]) -> tuple[Key, dict[str, Key]]:
        """A model object and those of the rule's states; all or nothing (`ArenaFull`)."""
        memory = self.services.memory
        got: list[Key] = []
        try:
            got.append(memory.alloc(Kind.MODEL, self.number, epoch, self.layout.data_bytes))
            for _ in state_names:
                got.append(memory.alloc(Kind.STATE, self.number, epoch, self.acc_bytes))
        except ArenaFull:
            for key in got:
                memory.free(key)
            raise
        return got[0], dict(zip(state_names, got[1:], strict=True))

    def free_model(self) -> None:
        """Lets the current model and states go, each when nobody reads it any more."""
        for key in (*self.states.values(), *([self.model] if self.model else [])):
            if self.pins[key]:
                self.doomed.add(key)
            else:
                self.services.memory.free(key)
        self.states, self.model = {}, None

    # ---- the model of another node -----------------------------------------------------------------------------

    def model_at(self, order: o.ModelAt) -> None:
        """The current model is another one now, and elsewhere."""
        if order.round == self.round and self.model is not None:
            return
        self.free_model()
        self.round, self.source = order.round, order.source

    def fetch(self) -> None:
        """Gets the current model from where it is, once the arena has room."""
        if self.model is not None or self.fetching is not None or not self.source:
            return
        try:
            key, _ = self.alloc_model(epoch_of(self.round, 0), ())
        except ArenaFull:
            return  # `Agent.settle` tries again
        self.fetching = key
        self.services.emit(gm.Fetch(key.pack(), self.source, self.name, self.round + 1))

    def fetched(self, error: str) -> None:
        """The fetch has ended; a failed one is tried again while somebody wants the model."""
        key, self.fetching = self.fetching, None
        if key is None:
            return
        entry_round = self.services.memory.epoch_of(key) >> 8
        if error or entry_round != self.round or self.model is not None:
            self.services.memory.free(key)
            return
        self.model = key
        for branch in self.branches.values():
            self.aggregation.consider_all(branch)

    @property
    def wants_model(self) -> bool:
        """Whether anything here waits for the current model."""
        if self.model is not None:
            return False
        return bool(self.wanting) or any(branch.top and not branch.sealed for branch in self.branches.values())

    def unpin(self, key: Key) -> bool:
        """A reader of a model or state object is through; returns whether it was one of this job's."""
        if not self.pins[key]:
            return False
        self.pins[key] -= 1
        if not self.pins[key]:
            del self.pins[key]
            if key in self.doomed:
                self.doomed.remove(key)
                self.services.memory.free(key)
        return True

    def drop_sending_pins(self) -> None:
        """The gateway is gone: only the checkpoints being written still read models."""
        writing = Counter(key for task, _ in self.files.values() for key in task.inputs)
        for key in list(self.pins):
            while self.pins[key] > writing[key]:
                self.unpin(key)

    # ---- files -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Loads the model, once the arena has room for a round of the job."""
        order = self.order
        need = round_bytes_min(self.layout, order.aggregation, order.clients_per_round, len(order.states))
        if not self.services.memory.reserve(self.number, need):
            return
        # Before the first commit there is no state yet: the rule begins with its own initial values.
        try:
            self.model, self.states = self.alloc_model(
                epoch_of(order.round, 0), self.state_names if order.state_path else ()
            )
        except ArenaFull:
            self.services.memory.release(self.number)
            return
        self.open = True
        self._file_task("load", [], None)

    def save(self, order: o.SaveModel) -> None:
        """Writes the current model and states, which stay until they are written."""
        if self.model is None:
            raise LocalFault(f"job {self.name!r} has no model to save")
        inputs = [self.model, *self.states.values()]
        self.pins.update(inputs)
        self._file_task("checkpoint", inputs, order)

    def _file_task(self, role: str, inputs: list[Key], order: o.SaveModel | None) -> None:
        task = Task(0, role, 0)
        task.inputs = inputs
        task.move(TaskState.OPEN)
        task.address = self.services.open_address(self, task)
        self.files[task.address] = (task, order)
        task.move(TaskState.PLACING)
        self.services.place(self, task, -1 if order is None else order.epoch)

    def file_message(self, task: Task) -> Message:
        """What the worker of a load or checkpoint task is told."""
        _, order = self.files[task.address]
        if order is not None:
            return wm.Checkpoint(
                task.address,
                task.attempt,
                self.name,
                round_of(order.epoch),
                order.path,
                self.layout.tensors,
                task.inputs[0].pack(),
                order.state_path,
                # The initial model has no states yet.
                dict(zip(self.state_names, (key.pack() for key in task.inputs[1:]), strict=False)),
            )
        if self.model is None:
            raise LocalFault(f"job {self.name!r} loads no model")
        states = {name: key.pack() for name, key in self.states.items()}
        path, state_path = self.order.path, self.order.state_path
        return wm.Load(
            task.address, task.attempt, self.name, path, self.layout.tensors, self.model.pack(), state_path, states
        )

    def file_done(self, task: Task) -> None:
        """A load or checkpoint task is done."""
        _, order = self.files.pop(task.address)
        if order is None:
            self.ready = True
            self.services.emit(gm.JobSchema(self.name, self.number, self.layout.tensors))
            self.services.report(o.JobOpened(self.number))
            return
        for key in task.inputs:
            self.unpin(key)
        self.services.report(o.ModelSaved(self.number, order.epoch))

    def failed(self, text: str) -> None:
        """The job cannot go on here."""
        self.services.report(o.JobFailed(self.number, text[:TEXT_CHARS_MAX]))

    # ---- branches ----------------------------------------------------------------------------------------------

    def open_branch(self, order: o.OpenBranch) -> None:
        """Begins this node's part of a round; with `adopt`, from what an earlier life has sealed for it."""
        section, adopt = self.aggregation_config, order.adopt
        updates: list[tuple[Key, Contribution]] = []
        partials: list[Key] = []
        members: list[Contribution] = []
        if adopt:
            updates, partials, members = self._take_orphans(order.epoch)
            left = max(order.updates - (len(members) - len(updates)), len(updates))
            if not (members or order.branch or order.others):
                self.services.report(o.BranchAdopted(self.number, order.epoch, order.branch, ()))
                return
            order = msgspec.structs.replace(order, updates=left)
        self.services.memory.start_peak(self.number)
        members_max = max(self.order.clients_per_round, order.updates + len(members))
        branch = Branch(order, members_max, section.fan_in, section.middle_fan_in, len(partials))
        self.branches[order.epoch, order.branch] = branch
        if adopt:
            branch.accepted = {member.client: member for member in members}
            self.services.report(o.BranchAdopted(self.number, order.epoch, order.branch, told(members)))
            self.aggregation.adopt(branch, updates, partials)

    def free_orphans(self) -> None:
        """What an earlier life of the node has sealed is not wanted."""
        for key, *_ in self.orphans:
            self.services.memory.free(key)
        self.orphans = []

    def _take_orphans(self, epoch: int) -> tuple[list[tuple[Key, Contribution]], list[Key], list[Contribution]]:
        """The orphans of an epoch; older ones are freed, later ones stay for their round.

        A partial may stand beside its own inputs, or one of a lower level: the largest wins, what is in it is freed.
        Any two partials are disjoint or one contains the other, for a task's output contains all of its inputs.
        """
        updates: list[tuple[Key, Contribution]] = []
        partials: list[Key] = []
        members: dict[str, Contribution] = {}
        orphans, self.orphans = self.orphans, []
        for orphan in sorted(orphans, key=lambda orphan: -len(orphan[3])):
            key, kind, found, its = orphan
            if found > epoch:
                self.orphans.append(orphan)
            elif found < epoch or not its or any(member.client in members for member in its):
                self.services.memory.free(key)
            else:
                if kind is Kind.PARTIAL:
                    partials.append(key)
                else:
                    updates.append((key, its[0]))
                members |= {member.client: member for member in its}
        return updates, partials, list(members.values())

    def admit(self, branch: Branch, member: Contribution) -> tuple[Key, bytes]:
        """A slot for a granted update.  Raises `ArenaFull`."""
        packed = pack_contribution(member)
        key = self.services.memory.alloc(
            Kind.UPDATE, self.number, branch.epoch, self.layout.data_bytes, CONTRIBUTION_BYTES_MAX, self.number
        )
        branch.inflight[member.client] = (key, member)
        try:
            self.aggregation.open_takers(branch)
        except ArenaFull:
            del branch.inflight[member.client]
            self.services.memory.free(key)
            raise
        return key, packed

    def sealed(self, branch: Branch, client: str, received_bytes: int, copied_bytes: int) -> None:
        """An update in flight is sealed: it is in the branch, unless that is closed."""
        if branch.closed:
            key, _ = branch.land(client)
            self.services.memory.free(key)
            self.services.report(o.UpdateAborted(self.number, branch.epoch, branch.number, client))
            return
        branch.accept(client)
        sizes = (received_bytes, copied_bytes)
        self.services.report(o.UpdateSealed(self.number, branch.epoch, branch.number, client, *sizes))
        self.aggregation.feed_waiting(branch)

    def aborted(self, branch: Branch, client: str, writing: bool) -> None:
        """An update in flight will not come; its client may be `writing` to the slot still."""
        key, _ = branch.land(client)
        if writing:
            self.services.rest(key)
        else:
            self.services.memory.free(key)
        if not branch.closed:
            self.aggregation.shut_takers(branch)
        self.services.report(o.UpdateAborted(self.number, branch.epoch, branch.number, client))

    def close_branch(self, order: o.CloseBranch) -> None:
        """No more updates count but those that are sealed."""
        branch = self.branches.get((order.epoch, order.branch))
        if branch is None:
            return  # it was lost with an earlier life of the node, as the coordinator will hear
        self.services.report(o.BranchClosed(self.number, branch.epoch, branch.number, len(branch.accepted)))
        if branch.closed:
            return  # it is asked again after the connection broke
        self.aggregation.close(branch)
        self.aggregation.feed_waiting(branch)

    def root_sealed(self, branch: Branch) -> None:
        """The branch's partial is complete: bring it to the top."""
        branch.sealed = True
        branch.cost.peak_bytes = self.services.memory.peaks.get(self.number, 0)
        self.services.report(o.BranchSealed(self.number, branch.epoch, branch.number, self._cost(branch)))
        if branch.order.parent:
            self.carry(branch)
            return
        top, root = self.branches.get((branch.epoch, 0)), branch.tree.root
        key, root.output, branch.carried = root.output, None, True
        if key is not None and (top is None or not self.arrived(top, branch.number, key, 0)):
            self.services.memory.free(key)

    def carry(self, branch: Branch) -> None:
        """Has the root partial brought to the top; again, when it did not get there."""
        key = branch.tree.root.output
        if key is not None:
            self.services.emit(gm.Carry(key.pack(), branch.order.parent, self.number, branch.epoch, branch.number))

    def _cost(self, branch: Branch) -> dict[str, Any]:
        return branch.cost.as_dict() | {"tree": self.aggregation.lines(branch)}

    def model_sealed(self, branch: Branch, root: Task, states: dict[str, Key]) -> None:
        """The top has made the round's model."""
        branch.sealed = True
        self.free_model()
        self.model, self.states = root.output, states
        self.round = round_of(branch.epoch)
        branch.cost.peak_bytes = self.services.memory.peaks.get(self.number, 0)
        self.services.report(o.ModelSealed(self.number, branch.epoch, self._cost(branch)))

    def expect_partials(self, order: o.ExpectPartials) -> None:
        """All branches are closed: so many partials come."""
        top = self.branches.get((order.epoch, 0))
        if top is not None:
            self.aggregation.expect_partials(top, order.partials)
            self.aggregation.feed_waiting(top)

    def arrived(self, top: Branch, number: int, key: Key, moved_bytes: int) -> bool:
        """The partial of branch `number` is sealed here; returns whether the top takes it, and with it the object.

        An earlier life of this node may have taken it already, and nobody was told: then its members are known.
        """
        top.arriving.discard(number)
        try:
            members = self.services.memory.members(key)
        except RemoteFault:
            return False
        if top.sealed or number not in top.awaited or any(top.has(member.client) for member in members):
            return False
        taker = top.tree.adopting[top.adopted + len(top.arrived)]
        top.awaited.discard(number)
        top.take(number, told(members))
        top.unfed.append((key, taker))
        self._tell_arrived(top, number, moved_bytes)
        self.aggregation.feed_waiting(top)
        return True

    def _tell_arrived(self, top: Branch, number: int, moved_bytes: int) -> None:
        report = o.PartialArrived(self.number, top.epoch, number, top.arrived[number], moved_bytes)
        self.services.report(report)

    def forget_branch(self, order: o.ForgetBranch) -> None:
        """A branch is lost, unless its partial is here."""
        top = self.branches.get((order.epoch, 0))
        if top is not None and order.branch in top.arrived:
            self._tell_arrived(top, order.branch, 0)
            return
        if top is not None:
            top.awaited.discard(order.branch)
        self.services.report(o.BranchForgotten(self.number, order.epoch, order.branch))

    def await_branch(self, order: o.AwaitBranch) -> None:
        """Another branch comes too."""
        top = self.branches.get((order.epoch, 0))
        if top is not None:
            top.awaited.add(order.branch)

    def branch_failed(self, branch: Branch, text: str, retry: bool) -> None:
        """The branch cannot be finished."""
        self.services.report(o.BranchFailed(self.number, branch.epoch, text[:TEXT_CHARS_MAX], retry))

    def commit_branches(self, epoch: int) -> None:
        """The round is committed: nothing of its branches is needed any more."""
        for epoch_, number in [at for at in self.branches if at[0] == epoch]:
            if self.branches[epoch_, number].sealed:
                self.aggregation.forget(self.branches.pop((epoch_, number)))
            else:
                # It took no updates; or it was adopted, and the top had its partial already.
                self.drop_branches(epoch_, number)

    def drop_branches(self, epoch: int, number: int = -1) -> None:
        """The round ends without a model, or goes on without branch `number`."""
        for at in [at for at in self.branches if at[0] == epoch and number in (-1, at[1])]:
            branch = self.branches.pop(at)
            branch.closed = True
            self.aggregation.discard(branch)

    def close(self) -> None:
        """The job is over: everything that it holds here is freed."""
        for epoch, number in list(self.branches):
            self.drop_branches(epoch, number)
        self.free_orphans()
        for task, order in list(self.files.values()):
            outputs = [] if order else [*self.states.values(), *([self.model] if self.model else [])]
            if order is None:
                self.states, self.model = {}, None
            task.move(TaskState.DROPPED)
            self.services.abandon(self, task, outputs)
            for key in task.inputs:
                self.unpin(key)
        self.files = {}
        if self.fetching is not None:
            self.services.abandon_fetch(self.fetching)
        self.free_model()
        self.services.memory.release(self.number)
        self.services.emit(gm.JobForget(self.name))
