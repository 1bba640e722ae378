"""A job's copy on one node: its model in the arena, its branches, and the tasks for its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from lifl.core import effects as fx
from lifl.core.agent import outcomes as out
from lifl.core.agent.branch import Branch, digests_of, tell_digests, told
from lifl.core.agent.branch_runner import BranchRunner
from lifl.core.agent.copies import NOT_OWN, Copies, own_files
from lifl.core.agent.evaluation_tasks import CallTasks, EvaluationTasks
from lifl.core.agent.file_tasks import FileTasks
from lifl.core.agent.journal import Journal
from lifl.core.agent.model_slot import ModelSlot, SlotState, begin_copy
from lifl.core.agent.orphans import Orphans
from lifl.core.agent.quota import Quota
from lifl.core.agent.replica_spec import ReplicaSpec, branch_need
from lifl.core.agent.task_table import TaskTable
from lifl.core.errors import ArenaFull, LocalFault, RemoteFault
from lifl.core.events import Orphan
from lifl.core.fields import Message
from lifl.core.ids import Key, round_of
from lifl.core.limits import COST_LINES_MAX, TEXT_CHARS_MAX
from lifl.core.planning.arena_need import model_bytes
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.evaluations import EvaluateModel, ModelEvaluated
from lifl.core.protocol.journal import Stored
from lifl.core.protocol.user_calls import CALLED, CallFunction, FunctionReturned
from lifl.core.turn import Turn


class JobReplica:
    """One job on one node, as its agent has it."""

    def __init__(
        self, order: o.OpenJob, found: list[Orphan], turn: Turn, quota: Quota, tasks: TaskTable, journal: Journal
    ) -> None:
        self._journal = journal
        self.spec = ReplicaSpec(order)
        self._turn = turn
        self._quota = quota
        self._tasks = tasks
        # What a user's rule has had of the arena is nobody else's, and it sees nothing of others.
        quota.begin(self.spec.number, "" if self.spec.has_code else self.spec.owner)
        quota.limit(self.spec.number, self.spec.quota.arena_share)
        quota.loans.leave(self.spec.number, self.spec.round_bytes)
        self.slot = ModelSlot(self.spec, order.round, turn, quota)
        self.files = FileTasks(self.spec, self.slot, tasks, turn)
        self.copies = Copies(self.spec, self.slot, turn, quota, self.files)
        self.least_bytes = self.promised_bytes = 0  # of the arena: for a round on this node alone, and now
        self.evaluations = EvaluationTasks(self.spec, self.slot, tasks, turn)
        self.calls = {key: CallTasks(self.spec, self.slot, tasks, turn, key) for key in CALLED}
        self.runners: dict[tuple[int, int], BranchRunner] = {}  # by epoch and number of the branch
        turn.touch(self.spec.number)
        self.orphans = Orphans(self.spec.number, found, quota)
        if not order.adopt:
            self.orphans.free()
            journal.drop_job(self.spec.number)
        if not self.slot.open:
            self._start()
        else:
            self._turn.emit(self.schema())

    # ---- orders ----------------------------------------------------------------------------------------------------

    def obey(self, order: Message) -> None:
        """Do what the coordinator orders for this job; what comes of it is reported."""
        self._turn.touch(self.spec.number)
        ORDERS[type(order)](self, order)

    def _open_branch(self, order: o.OpenBranch) -> None:
        """Begin this node's part of a round; with `adopt`, from what an earlier life has sealed for it.

        One that is open stays as it is.
        """
        here = self.runners.get((order.epoch, order.branch))
        if here is not None:  # a coordinator that heard twice what an earlier life had left asks for it twice
            if order.adopt:
                accepted = told(here.branch.accepted.values())
                self._turn.report(o.BranchAdopted(self.spec.number, order.epoch, order.branch, accepted))
                tell_digests(self._turn, self.spec.number, order, here.branch.accepted.values())
            return
        updates, partials, members = self.orphans.take(order.epoch, order.without) if order.adopt else ([], [], [])
        stored: list[Stored] = []
        if order.adopt:
            updates, members, stored = self._journal.joined(
                order, self.spec.durable, updates, members, {epoch for epoch, _ in self.runners}
            )
            adopted = o.BranchAdopted(self.spec.number, order.epoch, order.branch, told(members))
            self._turn.report(adopted)
            tell_digests(self._turn, self.spec.number, order, members)
            if not (members or order.branch or order.others):
                return
            whole = len(updates) + len(stored)
            left = max(order.updates - (len(members) - whole), whole)
            order = msgspec.structs.replace(order, updates=left)
        self._quota.start_peak(self.spec.number)
        members_max = max(self.spec.clients_per_round, order.updates + len(members))
        section = self.spec.aggregation
        branch = Branch(
            order,
            members_max,
            section.leaf_fan_in,
            section.middle_fan_in,
            len(partials),
            self.spec.fold,
            self._turn.now,
        )
        runner = BranchRunner(branch, self.spec, self.slot, self._turn, self._quota, self._tasks, self.runners)
        runner.need_bytes = branch_need(self.spec, order, len(partials))
        self.runners[order.epoch, order.branch] = runner
        branch.accepted = {member.client: member for member in members}
        branch.unfed.extend(zip(partials, branch.tree.adopting, strict=False))
        branch.unfed.extend((key, None) for key, _ in updates)
        branch.stored.extend(stored)
        self.act(runner.feed_waiting())
        self.act(self._journal.load_waiting(runner))

    def _close_branch(self, order: o.CloseBranch) -> None:
        """Count no more updates but those that are sealed."""
        runner = self.runners.get((order.epoch, order.branch))
        if runner is None:
            return  # it was lost with an earlier life of the node, as the coordinator will hear
        branch = runner.branch
        self._turn.report(o.BranchClosed(self.spec.number, branch.epoch, branch.number, len(branch.accepted)))
        if not branch.closed:  # else it is asked again after the connection broke
            self.act(runner.close())

    def _drop(self, epoch: int, number: int = -1) -> None:
        """Give up a branch (-1: all of the epoch): the round ends, or goes on, without it."""
        for at in [at for at in self.runners if at[0] == epoch and number in (-1, at[1])]:
            runner = self.runners.pop(at)
            if self.spec.durable:
                self._journal.drop(self.spec.number, epoch, set(runner.branch.accepted))
            runner.discard()

    def _commit_branch(self, order: o.CommitBranch) -> None:
        """Free what was kept for a restart: the round is committed."""
        if self.spec.durable:
            self._journal.drop(self.spec.number, order.epoch)
        for at in [at for at in self.runners if at[0] == order.epoch]:
            if self.runners[at].branch.sealed:
                self.runners.pop(at).forget()
            else:
                # It took no updates; or it was adopted, and the top had its partial already.
                self._drop(*at)

    def _forget_branch(self, order: o.ForgetBranch) -> None:
        """Give a branch up as lost, unless its partial is here."""
        top = self.top_of(order.epoch)
        if top is not None and order.branch in top.branch.arrived:
            self._report_arrived(top.branch, order.branch, 0)
            return
        if top is not None:
            top.branch.awaited.discard(order.branch)
        self._turn.report(o.BranchForgotten(self.spec.number, order.epoch, order.branch))

    def _more_of_top(self, order: o.AwaitBranch | o.ExpectPartials) -> None:
        """Let the top await one branch more, or know how many partials come in all."""
        top = self.top_of(order.epoch)
        if top is None:
            return
        if isinstance(order, o.AwaitBranch):
            top.branch.awaited.add(order.branch)
        else:
            self.act(top.expect_partials(order.partials))

    # ---- outcomes --------------------------------------------------------------------------------------------------

    def act(self, outcomes: Iterable[out.Outcome]) -> None:
        """Go on from how tasks ended, and report it."""
        number = self.spec.number
        for outcome in outcomes:
            if not isinstance(outcome, out.BranchFailed | out.FileFailed):  # nothing goes on by these
                self._turn.touch(number)
            match outcome:
                case out.PartialSealed():
                    self._partial_sealed(outcome.branch)
                case out.ModelSealed():
                    self._model_sealed(outcome)
                case out.BranchFailed():
                    text = outcome.text[:TEXT_CHARS_MAX]
                    said = (text, outcome.retry, outcome.suspects)
                    outcome.branch.failed = o.BranchFailed(number, outcome.branch.epoch, *said)
                    self._turn.report(outcome.branch.failed)
                case out.ModelLoaded():
                    self.slot.move(SlotState.READY)
                    self._turn.emit(self.schema())
                    self._turn.report(o.JobOpened(number))
                case out.CheckpointWritten():
                    self._turn.report(o.ModelSaved(number, outcome.epoch, outcome.digests))
                case out.CopyEnded():
                    copy_ended(self, outcome)
                case out.EvaluationEnded():
                    self._turn.report(ModelEvaluated(number, outcome.round, outcome.metrics, outcome.fault))
                case out.CallEnded():
                    what = (outcome.call, outcome.key, outcome.answer, outcome.fault)
                    self._turn.report(FunctionReturned(number, *what))
                case out.FilePaused():
                    self._turn.report(o.FilePaused(number, outcome.text[:TEXT_CHARS_MAX]))
                case out.FileFailed():
                    self._turn.report(o.JobFailed(number, outcome.text[:TEXT_CHARS_MAX]))

    def _partial_sealed(self, branch: Branch) -> None:
        """Bring the branch's partial to the top."""
        branch.sealed = True
        self._turn.report(o.BranchSealed(self.spec.number, branch.epoch, branch.number, self._cost(branch)))
        if branch.parent:
            self._carry([branch])
            return
        top, root = self.top_of(branch.epoch), branch.tree.root
        key, root.output, branch.carried = root.output, None, True
        if key is not None and (top is None or not self.arrived(top, branch.number, key, 0)):
            self._quota.free(key)

    def _model_sealed(self, outcome: out.ModelSealed) -> None:
        branch, model = outcome.branch, outcome.top.output
        branch.sealed = True
        if model is not None:
            self.slot.replace(round_of(branch.epoch), model, outcome.states)
        self._turn.report(o.ModelSealed(self.spec.number, branch.epoch, self._cost(branch)))

    def _cost(self, branch: Branch) -> dict[str, Any]:
        """Return the branch's part of the receipt."""
        branch.cost.peak_bytes = self._quota.peaks.get(self.spec.number, 0)
        return branch.cost.as_dict() | {"tree": branch.lines()[:COST_LINES_MAX]}

    # ---- partials between nodes ------------------------------------------------------------------------------------

    def top_of(self, epoch: int) -> BranchRunner | None:
        """Return the branch of this epoch that makes the model, if it is on this node."""
        return self.runners.get((epoch, 0))

    def arrived(self, top: BranchRunner, number: int, key: Key, moved_bytes: int) -> bool:
        """Take the sealed partial of branch `number` into the top; return whether the object is the top's now.

        An earlier life of this node may have taken it already, and died before it told so: then its members are known.
        """
        branch = top.branch
        self._turn.touch(self.spec.number)
        try:
            members = self._quota.members(key)
        except RemoteFault:
            return False
        if branch.sealed or number not in branch.awaited or any(branch.has(member.client) for member in members):
            return False
        taker = branch.tree.adopting[branch.adopted + len(branch.arrived)]
        branch.awaited.discard(number)
        branch.take(number, told(members))
        branch.unfed.append((key, taker))
        self._report_arrived(branch, number, moved_bytes, digests_of(members))
        self.act(top.feed_waiting())
        return True

    def _report_arrived(self, top: Branch, number: int, moved_bytes: int, digests: tuple[int, ...] = ()) -> None:
        at, members = (self.spec.number, top.epoch, number), top.arrived[number]
        self._turn.report(o.PartialArrived(*at, members, moved_bytes, digests=digests))

    def carry_again(self) -> None:
        """Have the partials brought to the top that did not get there."""
        self._carry(branch for branch in self.branches() if branch.sealed and not branch.top and not branch.carried)

    def _carry(self, branches: Iterable[Branch]) -> None:
        for branch in branches:
            key = branch.tree.root.output
            if key is not None:
                at = (self.spec.number, branch.epoch, branch.number)
                self._turn.emit(gm.Carry(key.pack(), branch.parent, *at, branch.secret))

    # ---- the model -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Have the model loaded, once the arena has room for a round of the job.

        One that was begun when a round needed less may need more than the whole arena: then it is promised all of it.
        """
        spec = self.spec
        need = spec.room_bytes or spec.round_bytes
        if not self._quota.reserve(spec.number, min(need, self._quota.total_bytes)):
            return
        self.least_bytes = self.promised_bytes = need
        if spec.fold:
            begin_session(self)
            return
        try:
            self.slot.begin_load(with_states=bool(spec.state_path) or (bool(spec.source) and self.slot.round > 0))
        except ArenaFull:
            self._quota.release(spec.number)
            return
        if spec.source:
            self.copies.load(spec.source)
        else:
            self.files.load()

    def schema(self) -> gm.JobSchema:
        """Return what the gateway must know to select clients for this job, and to check their updates."""
        spec = self.spec
        more = (spec.client_options, spec.quota.bytes_per_s, spec.patterns)
        return gm.JobSchema(spec.name, spec.number, spec.layout.tensors, *more, spec.layout.reproducible, spec.listed)

    @property
    def wants_model(self) -> bool:
        """True when anything here waits for the current model, and it is elsewhere."""
        if self.slot.model is not None or self.spec.fold:
            return False
        return bool(self.slot.wanting) or any(branch.top and not branch.sealed for branch in self.branches())

    def fetched(self, error: str, received_bytes: int) -> None:
        """End the fetch of the model; tops that waited for it go on."""
        self._turn.touch(self.spec.number)
        if self.slot.fetched(error):
            for runner in self.runners.values():
                runner.consider_all()
        for branch in self.branches():
            if not branch.sealed:
                branch.cost.fetched_bytes += received_bytes
                break

    # ---- the rest --------------------------------------------------------------------------------------------------

    def branches(self) -> list[Branch]:
        """Return the branches of this job that the node has."""
        return [runner.branch for runner in self.runners.values()]

    def settle(self, may_fetch: bool) -> bool:
        """Do what has become possible; return whether anything still waits for room."""
        if not self.slot.open:
            self._start()
        else:
            promise(self)
        self.slot.serve()
        if may_fetch and self.wants_model:
            self.slot.fetch()
        for runner in list(self.runners.values()):
            if runner.branch.unfed:
                self.act(runner.feed_waiting())
            if runner.branch.stored:
                self.act(self._journal.load_waiting(runner))
            runner.last_updates.follow()
        waits = not self.slot.open or (self.wants_model and self.slot.state is SlotState.ELSEWHERE)
        return waits or any(branch.unfed or branch.stored for branch in self.branches())

    def close(self) -> Counter[Key]:
        """Free everything that the job holds here; return the objects that the gateway is still at, each as often."""
        for at in list(self.runners):
            self._drop(*at)
        self._journal.drop_job(self.spec.number)
        self.orphans.free()
        for each in (self.evaluations, *self.calls.values()):
            each.close()
        copied = self.copies.close()
        at_gateway = self.files.close() + Counter(copied)
        self._quota.release(self.spec.number)
        self._quota.limit(self.spec.number, 1.0)
        self._quota.loans.leave(self.spec.number, 0)
        self._turn.emit(gm.JobForget(self.spec.name))
        return at_gateway

    def problems(self) -> Iterable[str]:
        """Yield what is wrong with the job's books on this node, a sentence each."""
        name = self.spec.name
        for at, runner in self.runners.items():
            branch = runner.branch
            if at != (branch.epoch, branch.number):
                yield f"job {name!r}: branch {branch.number} of epoch {branch.epoch} is kept as {at}"
            yield from (f"job {name!r}, branch {at}: {problem}" for problem in branch.problems())
        if (self.slot.fetching is not None) != (self.slot.state is SlotState.FETCHING):
            yield f"job {name!r} fetches {self.slot.fetching} while its model is {self.slot.state.value}"
        if self.slot.state is SlotState.READY and self.slot.model is None:
            yield f"job {name!r} has no model though it is ready"
        if self.slot.putting is not None and not self.spec.fold:
            yield f"job {name!r} is put a model, and is no session of folds"
        unpinned = self.slot.doomed.keys() - self.slot.pins.keys()
        if unpinned:
            yield f"job {name!r} keeps {unpinned} for no reader"
        if not set(self.slot.readers.values()) <= self.slot.pins.keys():
            yield f"job {name!r} is being read where nothing is pinned"
        yield from self.copies.problems()
        written = self.files.written()
        if not written <= self.slot.pins:
            yield f"job {name!r} writes checkpoints from objects that are not pinned"


def take_options(replica: JobReplica, order: o.OpenJob) -> None:
    """Have trainers get from now on what the coordinator says."""
    if order.client_options != replica.spec.client_options:
        replica.spec.client_options = order.client_options
        if replica.slot.open:
            replica._turn.emit(replica.schema())


def promise(replica: JobReplica) -> None:
    """Have as much of the arena promised to the job as its branches need now.

    A top that takes partials of other nodes may need more than a round on one node does, and of a branch beside it no
    room was kept before: no other job is to begin in what it has yet to take, or both would wait for each other.
    Branches that are here beside each other need it all, but for the model, which is here once.
    """
    branches = [runner.need_bytes for runner in replica.runners.values() if not runner.branch.sealed]
    shared = model_bytes(replica.spec.layout) * max(len(branches) - 1, 0)
    wanted, quota = max(replica.least_bytes, sum(branches) - shared), replica._quota
    if wanted != replica.promised_bytes and quota.reserve(replica.spec.number, min(wanted, quota.total_bytes)):
        replica.promised_bytes = wanted


def begin_session(replica: JobReplica) -> None:
    """Be ready for the folds of a session, behind the last that an earlier life has made."""
    number, turn = replica.spec.number, replica._turn
    found = replica.orphans.take_models(replica.spec.state_names)
    replica.slot.vacate(found)
    turn.emit(replica.schema())
    turn.report(o.FoldAdopted(number, found.round, found.epoch, told(found.members)))
    turn.report(o.JobOpened(number))


def move_partial(replica: JobReplica, order: o.MovePartial) -> None:
    """Bring a branch's partial to that top from now on, which has not what was brought before."""
    runner = replica.runners.get((order.epoch, order.branch))
    if runner is not None and (runner.branch.carried or runner.branch.parent != order.parent):
        runner.branch.parent, runner.branch.carried = order.parent, False
        if runner.branch.sealed:
            replica._carry([runner.branch])


def serve_copy(replica: JobReplica, order: o.ServeCopy) -> None:
    """Have this node's copy read, and serve it."""
    ready = replica.slot.state is SlotState.READY and replica.slot.round == round_of(order.epoch)
    if ready and len(replica.slot.states) == (len(replica.spec.state_names) if order.state_path else 0):
        replica._turn.report(o.CopyServed(replica.spec.number, order.epoch))
        return
    try:
        if not own_files(replica.spec, order):
            raise LocalFault(NOT_OWN)
        begin_copy(replica.slot, round_of(order.epoch), with_states=bool(order.state_path))
    except (ArenaFull, LocalFault) as fault:
        replica._turn.report(o.CopyFailed(replica.spec.number, order.epoch, str(fault)[:TEXT_CHARS_MAX]))
        return
    replica.files.serve(order)


def copy_ended(replica: JobReplica, outcome: out.CopyEnded) -> None:
    """Report what became of a copy."""
    order, served = outcome.order, isinstance(outcome.order, o.ServeCopy)
    at = (replica.spec.number, order.epoch)
    if served:
        replica.slot.move(SlotState.ELSEWHERE if outcome.fault else SlotState.READY)
    if outcome.fault:
        replica._turn.report(o.CopyFailed(*at, outcome.fault[:TEXT_CHARS_MAX]))
    else:
        replica._turn.report(o.CopyServed(*at) if served else o.ModelCopied(*at, outcome.digests))


def save_model(replica: JobReplica, order: o.SaveModel) -> None:
    """Have the current model written, and (`keep`) serve it for copies."""
    replica.files.save(order)
    if order.keep:
        replica.copies.keep(order.epoch)


def keep_copies(replica: JobReplica, order: o.KeepCopies) -> None:
    """Have those of this node's copies go that do not stay."""
    spec = replica.spec
    replica._turn.emit(fx.KeepModels(spec.name, spec.number, spec.name, order.kept))


def lives(replicas: Mapping[int, JobReplica], runner: BranchRunner) -> bool:
    """Return whether a branch is one that the node has, and was not dropped."""
    replica, branch = replicas.get(runner.job), runner.branch
    return replica is not None and replica.runners.get((branch.epoch, branch.number)) is runner


ORDERS: Mapping[type, Callable[[JobReplica, Any], None]] = {
    o.ModelAt: lambda replica, order: replica.slot.is_at(order),
    o.SaveModel: save_model,
    o.ReleaseModel: lambda replica, order: replica.copies.release(order.epoch),
    o.CopyModel: lambda replica, order: replica.copies.copy(order),
    o.ServeCopy: serve_copy,
    o.KeepCopies: keep_copies,
    EvaluateModel: lambda replica, order: replica.evaluations.begin(order),
    CallFunction: lambda replica, order: replica.calls[order.key].begin(order),
    o.OpenBranch: JobReplica._open_branch,
    o.CloseBranch: JobReplica._close_branch,
    o.DropBranch: lambda replica, order: replica._drop(order.epoch, order.branch),
    o.CommitBranch: JobReplica._commit_branch,
    o.ForgetBranch: JobReplica._forget_branch,
    o.AwaitBranch: JobReplica._more_of_top,
    o.ExpectPartials: JobReplica._more_of_top,
    o.MovePartial: move_partial,
}
"""What is done at each order about a job that is open here."""
