"""Planted bugs, one or more for each check of `sim_checks.py`: each is one that a hurried change could bring in.

A plant is a function that patches it in, with what it is as its docstring.  `PLANTS` says which check must find it, on
how many hosts, and within how many lives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest

from lifl.core import effects as fx
from lifl.core import engine
from lifl.core.agent import agent, uploads
from lifl.core.agent.agent import Agent
from lifl.core.agent.branch import told
from lifl.core.agent.branch_runner import BranchRunner
from lifl.core.agent.job_replica import JobReplica
from lifl.core.agent.model_slot import ModelSlot
from lifl.core.agent.orphans import Orphans
from lifl.core.agent.partial_transfers import PartialTransfers
from lifl.core.agent.pool import Pool
from lifl.core.agent.quota import Loans, Quota
from lifl.core.agent.task_table import TaskTable
from lifl.core.agent.uploads import Uploads
from lifl.core.coordinator.answers import Answers
from lifl.core.coordinator.branch_record import BranchState
from lifl.core.coordinator.branches import BranchTracker
from lifl.core.coordinator.commits import Commits
from lifl.core.coordinator.evaluation import Evaluation
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.job_queue import JobQueue
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.keeping import Keeping
from lifl.core.coordinator.nodes import Node
from lifl.core.coordinator.round_runner import RoundRunner
from lifl.core.ids import Key, Kind
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import commands as o
from lifl.core.turn import Turn
from lifl.shm.allocator import Allocator

Patch = pytest.MonkeyPatch


# ---- what counts -----------------------------------------------------------------------------------------------------


def sealed_output_is_overlooked(patch: Patch) -> None:
    """A leaf whose worker died is made again although its partial was sealed: its updates count twice."""
    right = TaskTable._lost

    def lost(self: TaskTable, runner, task):
        if task.role == "leaf" and task.state is TaskState.RUNNING and self._quota.sealed(task.output):
            spec, epoch = runner._spec, runner.branch.epoch
            task.output = self._quota.alloc(Kind.PARTIAL, spec.number, epoch, spec.accumulator_bytes)
        return right(self, runner, task)

    patch.setattr(TaskTable, "_lost", lost)


def top_is_not_asked(patch: Patch) -> None:
    """A dead node's updates are asked for again although the top may have its partial: they count twice."""

    def give_up(self: BranchTracker, round_, record) -> None:
        record.move(BranchState.FORGETTING)
        self._turn.report(o.BranchForgotten(self._spec.number, round_.epoch, record.number))

    patch.setattr(BranchTracker, "give_up", give_up)


def what_is_being_stored_is_accepted(patch: Patch) -> None:
    """An update of a job that wants the disk is accepted before it is there: the machine's end loses it."""

    def sealed(self: Uploads, key, received_bytes):
        runner = self._landed(key)
        with self._turn.share(runner.job):
            return runner.sealed(key, received_bytes)
        return []

    patch.setattr(Uploads, "sealed", sealed)


def orphans_are_forgotten(patch: Patch) -> None:
    """A node that starts again does not take up the updates that its earlier life had sealed."""
    right = Orphans.take

    def take(self: Orphans, epoch, without=()):
        updates, partials, _ = right(self, epoch, without)
        for key in [*(key for key, _ in updates), *partials]:
            self._quota.free(key)
        return [], [], []

    patch.setattr(Orphans, "take", take)


def orphans_of_any_attempt_count(patch: Patch) -> None:
    """A node that starts again takes up what an attempt that has failed had sealed."""
    right = Orphans.take

    def take(self: Orphans, epoch, without=()):
        self._found = [(key, kind, epoch, members) for key, kind, _, members in self._found]
        return right(self, epoch, without)

    patch.setattr(Orphans, "take", take)
    patch.setattr(BranchRunner, "discard", _discard_but_sealed)


def _discard_but_sealed(runner: BranchRunner) -> None:
    """Give up a branch, but leave its updates in the arena for the next one."""
    branch = runner.branch
    branch.closed = True
    for task in branch.tree.tasks:
        if task.state is not TaskState.DONE:
            task.inputs = []
            runner._drop(task)
    for task in branch.tree.tasks:
        runner._tasks.close(task)
    branch.unfed.clear()


def partial_is_taken_again(patch: Patch) -> None:
    """A partial is brought until its round is over, and its top takes it each time."""

    def arrived(self: JobReplica, top: BranchRunner, number: int, key: Key, moved_bytes: int) -> bool:
        branch, members = top.branch, self._quota.members(key)
        place = branch.adopted + sum(taker is not None for _, taker in branch.unfed) + len(branch.tree.root.inputs)
        if branch.sealed or place >= len(branch.tree.adopting):
            return False
        branch.unfed.append((key, branch.tree.adopting[place]))
        self._turn.report(o.PartialArrived(self.spec.number, branch.epoch, number, told(members), moved_bytes))
        self.act(top.feed_waiting())
        return True

    def ended(self: PartialTransfers, event) -> None:
        self._retry_at_s = self._turn.now

    patch.setattr(JobReplica, "arrived", arrived)
    patch.setattr(PartialTransfers, "carry_ended", ended)


def who_asks_again_is_granted_again(patch: Patch) -> None:
    """A client that submits again over another connection is granted a second slot beside its first."""
    right = Answers.admit

    def admit(self: Answers, here, event, loading):
        if self._rounds.current is not None:
            self._rounds.current.granted.pop(event.client, None)
        right(self, here, event, loading)

    patch.setattr(Answers, "admit", admit)


# ---- commits and rows ------------------------------------------------------------------------------------------------


def commit_is_repeated(patch: Patch) -> None:
    """A commit that comes while the next round collects is written twice."""
    right = Commits._commit

    def commit(self: Commits, round_) -> None:
        right(self, round_)
        if round_.number and self._rounds.current is not None and self._rounds.current.accepted:
            row = {"metrics": {}, "path": "", "receipt": {}, "members": sorted(round_.accepted)}
            self._turn.emit(fx.SaveRound(self._spec.name, round_.number, round_.attempt, "committed", row))

    patch.setattr(Commits, "_commit", commit)


def commits_as_they_are_saved(patch: Patch) -> None:
    """A round is committed as soon as its checkpoint is durable, whether that before it is or not."""

    def saved(self: Commits, report: o.ModelSaved) -> bool:
        saving = self._rounds.saving
        for round_ in [round_ for round_ in saving if round_.epoch == report.epoch]:
            saving.remove(round_)
            self._commit(round_)
        goes_on, self.paused = bool(self.paused), ""
        return goes_on

    patch.setattr(Commits, "saved", saved)


def rows_are_not_waited_for(patch: Patch) -> None:
    """What a commit frees is gone before its row is durable."""
    patch.setattr(Turn, "emit", lambda self, effect: self.effects.append(effect))


def who_coordinated_goes_on(patch: Patch) -> None:
    """What a node had decided that coordinates no longer is done all the same."""
    patch.setattr(fx, "without_decisions", lambda effects: effects)


def terms_share_their_files(patch: Patch) -> None:
    """Who coordinated writes its checkpoint over that of who does."""
    patch.setattr(JobSpec, "_stem", lambda self, number, _term: f"{self.folder}/round-{number:05d}")


# ---- the arena -------------------------------------------------------------------------------------------------------


def kept_inputs_are_not_freed(patch: Patch) -> None:
    """What a top keeps for a restart is not freed when the round is committed."""
    patch.setattr(BranchRunner, "_free_kept", lambda self, root: None)


def arena_has_no_end(patch: Patch) -> None:
    """The allocator hands out bytes behind the arena when nothing is free."""
    right = Allocator._first_fit

    def first_fit(self: Allocator, size: int) -> int:
        found = right(self, size)
        return self.end if found is None else found

    patch.setattr(Allocator, "_first_fit", first_fit)


def reservations_are_not_kept(patch: Patch) -> None:
    """A job begins whatever room there is, and is given what is promised to another."""
    patch.setattr(Quota, "_promised", lambda self, but=-1: 0)
    patch.setattr(JobQueue, "_free_bytes", lambda self: self.total_bytes)


def slots_do_not_rest(patch: Patch) -> None:
    """A slot is free at once although a direct client may still write to it."""
    patch.setattr(Uploads, "give_back", lambda self, key, writing: self._quota.free(key))


def in_flight_is_sent(patch: Patch) -> None:
    """A task that starts is sent the keys of updates that are still on their way, too."""
    right = TaskTable._start

    def start(self: TaskTable, runner, task) -> None:
        right(self, runner, task)
        if isinstance(runner, BranchRunner) and runner.branch.in_flight:
            self._turn.emit(fx.SendKeys(task.address, task.attempt, tuple(runner.branch.in_flight)))

    patch.setattr(TaskTable, "_start", start)


def pins_do_not_hold(patch: Patch) -> None:
    """A model is freed when the next one takes its place, whether it is being read or not."""

    def free(self: ModelSlot) -> None:
        for key in self.keys():
            self._quota.free(key)
        self.model, self.states = None, {}

    patch.setattr(ModelSlot, "free", free)


# ---- jobs, workers, clients ------------------------------------------------------------------------------------------


def cancel_keeps_what_waits(patch: Patch) -> None:
    """A job that ends keeps what it had taken and not yet given to a task."""
    right = BranchRunner.discard

    def discard(self: BranchRunner) -> None:
        for task in self.branch.tree.tasks:
            if task.state is not TaskState.DONE:
                task.inputs = []
        right(self)

    patch.setattr(BranchRunner, "discard", discard)


def a_job_takes_others_along(patch: Patch) -> None:
    """The end of a job ends the branches of all jobs on the node."""
    right = Agent._close_job

    def close(self: Agent, order: o.CloseJob) -> None:
        right(self, order)
        for replica in self.replicas.values():
            self._turn.report(o.JobFailed(replica.spec.number, "another job has ended"))

    patch.setitem(agent.HANDLERS, o.CloseJob, close)


def workers_stay(patch: Patch) -> None:
    """A worker that is idle is never let go."""
    patch.setattr(Pool, "expired", lambda self, now: [])
    patch.setattr(Pool, "next_timer", lambda self: float("inf"))


def who_waits_for_room_is_not_answered(patch: Patch) -> None:
    """A client whose update waits for room when its round closes gets no answer."""
    patch.setattr(uploads, "_refuse", lambda turn, order, job: None)


def who_comes_late_is_not_told(patch: Patch) -> None:
    """A client that connects when its job is over hears nothing of that."""
    patch.setattr(Answers, "tell_fates", lambda self, here, client, holding: None)
    right = Job.join
    patch.setattr(Job, "join", lambda self, here, event: None if self.over else right(self, here, event))


# ---- the engine itself -----------------------------------------------------------------------------------------------


def chance_decides(patch: Patch) -> None:
    """A decision depends on what is in no event: which worker takes a task."""
    right, draws = Pool._choose, itertools.count()

    def choose(self: Pool, served, may_fork, tie):
        idle = [worker for worker in self.workers.values() if worker.state.value == "idle" and worker.takes(tie)]
        return (idle[next(draws) % len(idle)], "warm") if idle else right(self, served, may_fork, tie)

    patch.setattr(Pool, "_choose", choose)


def account_is_wrong(patch: Patch) -> None:
    """What is freed stays on the account of its job, at times."""
    right = Quota.free

    def free(self: Quota, key: Key) -> None:
        job, nbytes = self._sizes[key]
        right(self, key)
        if len(self._sizes) % 7 == 3:
            self._used[job] += nbytes

    patch.setattr(Quota, "free", free)


# ---- which finds which -----------------------------------------------------------------------------------------------


def drained_nodes_are_planned_with(patch: Patch) -> None:
    """The planner is told of all nodes that are heard: a drained one gets branches."""

    def takes_new(node: Node) -> bool:
        return node.known and not node.leaving

    patch.setattr(Node, "takes_new", property(takes_new))


def rounds_of_paused_jobs_open(patch: Patch) -> None:
    """That a job is paused is not minded when a round opens."""
    right = RoundRunner.try_open

    def try_open(self: RoundRunner) -> None:
        held, self._rounds.held = self._rounds.held, False
        right(self)
        self._rounds.held = held

    patch.setattr(RoundRunner, "try_open", try_open)


def priorities_are_ignored(patch: Patch) -> None:
    """Jobs begin in the order of their submission."""

    def line(self: JobQueue) -> list[Job]:
        return [job for job in self._running.values() if job.queued and not job.rounds.held]

    patch.setattr(JobQueue, "_line", line)


def a_paused_job_holds_up_the_line(patch: Patch) -> None:
    """A paused job keeps its place in line, and those behind it wait."""

    def line(self: JobQueue) -> list[Job]:
        waiting = [job for job in self._running.values() if job.queued]
        return sorted(waiting, key=lambda job: (-job.spec.config.priority, job.spec.number))

    patch.setattr(JobQueue, "_line", line)


def rounds_open_while_one_is_evaluated(patch: Patch) -> None:
    """An evaluation that has begun is no longer due, and the next round does not wait for it."""
    right = Evaluation.is_due
    patch.setattr(Evaluation, "is_due", lambda self, number: self.current is None and right(self, number))


def what_is_not_to_stay_is_told_to_nobody(patch: Patch) -> None:
    """A commit forgets to say which models go by it."""
    patch.setattr(Keeping, "tell", lambda self, committed, fresh=-1: None)


def jobs_that_run_are_removed(patch: Patch) -> None:
    """`lifl rm` does not look whether the job is over."""
    patch.setattr(engine, "forget", lambda coordinator, name: coordinator.jobs.pop(name, None))


def models_change_without_a_word(patch: Patch) -> None:
    """The gateway goes on sending its copy of a model that has been replaced."""

    def set_model(self: ModelSlot, key):
        self._model = key

    patch.setattr(ModelSlot, "model", property(lambda self: self._model, set_model))


def loans_end_with_the_gateway(patch: Patch) -> None:
    """What clients have mapped is freed when the gateway dies that has handed it on."""
    patch.setattr(Loans, "of", lambda _loans, _key: 0)


class Plant(NamedTuple):
    """A planted bug, the check that must find it, and in which lives: from the seed `begin` on, at most so many."""

    bug: Callable[[Patch], None]
    check: str
    hosts: int = 1
    style: str = "any"
    lives: int = 100
    moves: bool = False
    durable: bool = False
    begin: int = 0
    drains: bool = False
    stalls: bool = False
    changes: bool = False
    returns: bool = False
    lends: bool = False


PLANTS = (
    Plant(loans_end_with_the_gateway, "freed-never-read", begin=23, lends=True),
    Plant(priorities_are_ignored, "in-line", returns=True),
    Plant(a_paused_job_holds_up_the_line, "in-line", returns=True, begin=75),
    Plant(rounds_open_while_one_is_evaluated, "evaluated", returns=True, begin=35),
    Plant(what_is_not_to_stay_is_told_to_nobody, "kept", returns=True),
    Plant(jobs_that_run_are_removed, "returns", returns=True),
    Plant(rounds_of_paused_jobs_open, "paused", changes=True),
    Plant(drained_nodes_are_planned_with, "drained", hosts=3, drains=True),
    Plant(sealed_output_is_overlooked, "counted-once", style="stormy", begin=140, lives=300),
    Plant(top_is_not_asked, "counted-once", hosts=3, style="stormy", begin=900, lives=1200),
    Plant(partial_is_taken_again, "partial-once", hosts=3, begin=50),
    Plant(orphans_are_forgotten, "accepted-survives"),
    Plant(what_is_being_stored_is_accepted, "accepted-survives", style="stormy", durable=True),
    Plant(orphans_of_any_attempt_count, "epoch-fence"),
    Plant(commit_is_repeated, "one-commit"),
    Plant(commits_as_they_are_saved, "commit-order"),
    Plant(rows_are_not_waited_for, "rows-first"),
    Plant(who_coordinated_goes_on, "one-commit", hosts=3, style="stormy", moves=True),
    Plant(who_coordinated_goes_on, "one-commit", hosts=3, moves=True, stalls=True),
    Plant(who_asks_again_is_granted_again, "books", hosts=3, style="stormy", moves=True, stalls=True),
    Plant(kept_inputs_are_not_freed, "empty-at-rest"),
    Plant(arena_has_no_end, "arena-bound"),
    Plant(reservations_are_not_kept, "begun-ends", style="crowded"),
    Plant(slots_do_not_rest, "direct-slot", style="stormy"),
    Plant(in_flight_is_sent, "sealed-first", style="stormy"),
    Plant(models_change_without_a_word, "copied"),
    Plant(pins_do_not_hold, "freed-never-read", style="stormy", lives=300),
    Plant(cancel_keeps_what_waits, "cancel-frees"),
    Plant(a_job_takes_others_along, "jobs-apart"),
    Plant(workers_stay, "no-workers"),
    Plant(who_waits_for_room_is_not_answered, "told"),
    Plant(who_comes_late_is_not_told, "told"),
    Plant(chance_decides, "same-replay"),
    Plant(account_is_wrong, "books"),
)
