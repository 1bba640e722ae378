"""A training job, as the coordinator runs it: loading, then a sequence of rounds that each commit one new model, then
over.

The job decides what follows when a round's model is sealed, when it failed, and when a checkpoint is durable; the
round itself is run by `round_runner.py`.  Rounds overlap in one place: while the checkpoint of a round is being
written, the next round is open already; it cannot commit before its predecessor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from lifl.core import effects as fx
from lifl.core.coordinator.answers import Answers
from lifl.core.coordinator.branches import BranchTracker
from lifl.core.coordinator.checkpoints import Checkpoints, Stored
from lifl.core.coordinator.commits import Commits
from lifl.core.coordinator.copies import Copies
from lifl.core.coordinator.edits import Edits
from lifl.core.coordinator.evaluation import Evaluation, values_of_evaluation
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.keeping import Keeping
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.presence import Connection, Presence
from lifl.core.coordinator.receipt import receipt_of
from lifl.core.coordinator.recovery import Inventory, Recovery
from lifl.core.coordinator.replicas import Replicas
from lifl.core.coordinator.round import Phase, Round
from lifl.core.coordinator.round_planner import RoundPlanner
from lifl.core.coordinator.round_runner import RoundRunner
from lifl.core.coordinator.rounds import Rounds
from lifl.core.coordinator.selection import Selection
from lifl.core.coordinator.stopping import Stopping
from lifl.core.ids import ATTEMPTS_MAX
from lifl.core.planning.draw import NOTHING_SAID
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.user_calls import STOPS, FunctionReturned
from lifl.core.turn import Turn

OVER = ("finished", "failed", "cancelled")

Row = tuple[int, str, dict[str, Any]]
"""Of a round that had begun in an earlier life: its attempt, status and fields."""


class Job:
    """One job; `status` is ``loading``, ``running``, or one of `OVER`."""

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable, presence: Presence) -> None:
        self.spec = spec
        self.status = "loading"
        self.reason = ""
        self.queued = False  # it is to be loaded, and waits in line for that, or is paused (`job_queue.py`)
        self.spread = False  # other nodes fold its updates: it has begun with less room than a round at home needs
        self.rounds = Rounds()
        self.due_s = math.inf  # when `tick` is due, whatever its round waits for
        self._turn = turn
        self._nodes = nodes
        self._presence = presence
        self._attempt = 1
        self._failures = 0  # attempts of this round that failed by themselves
        self._failed: Round | None = None  # the last of them: what was trained for it is still good
        self._adopting = False  # an earlier life has left something in the arena
        self._rows: dict[int, Row] = {}
        self._ending: tuple[str, str] | None = None  # how it will be over when what is sealed is committed, and why
        self.planner = planner = RoundPlanner(spec, turn, nodes)
        self._replicas = Replicas(spec, turn, nodes)
        self.edits = Edits(spec, self.rounds, self._replicas)
        self._checkpoints = Checkpoints(spec, turn, nodes, self.rounds, self._replicas)
        self.copies = Copies(spec, turn, nodes, self.rounds)
        self.stopping, self.keeping = Stopping(spec, turn, nodes), Keeping(spec, turn, nodes)
        own = (self._replicas, self._checkpoints, self.copies, self.stopping, self.keeping)
        self.commits = Commits(spec, turn, presence, self.rounds, *own)
        self._branches = branches = BranchTracker(spec, turn, nodes, planner)
        self._recovery = Recovery(spec, turn, nodes, planner, branches)
        self.selection = selection = Selection(spec, turn, nodes, presence)
        self.runner = RoundRunner(spec, turn, presence, self.rounds, planner, selection, branches, self._recovery)
        self.evaluation = Evaluation(spec, turn, nodes, presence, selection)
        self.answers = Answers(spec, turn, nodes, presence, self.rounds, branches)

    @property
    def name(self) -> str:
        """The name that clients and users call it."""
        return self.spec.name

    @property
    def over(self) -> bool:
        """True when it has ended, in whatever way."""
        return self.status in OVER

    @property
    def round(self) -> Round | None:
        """The running round."""
        return self.rounds.current

    @property
    def present(self) -> Mapping[str, Connection]:
        """The clients that take part now."""
        return self._presence.of(self.name)

    # ---- loading -------------------------------------------------------------------------------------------------

    def resume(
        self,
        committed: int,
        counted: dict[int, frozenset[str]],
        rows: dict[int, Row],
        adopting: bool,
        stored: Mapping[int, Stored] | None = None,
        terms: Mapping[int, int] | None = None,
        holders: Mapping[int, tuple[int, ...]] | None = None,
    ) -> None:
        """Take up what an earlier life left: round `committed` is the last; `rows` has the newest of each behind it.

        `counted` has the members of the last committed ones, `stored`, `terms` and `holders` what is known of their
        files.
        `adopting`: something is sealed in the arena, which counts if its node is among those of the round.
        """
        self._checkpoints.begin(committed, stored or {}, terms or {}, holders or {})
        self.rounds.committed = committed
        self.rounds.counted = counted
        self._rows = rows
        _attempt, _status, row = rows.get(committed + 1, (0, "", {}))
        self._adopting = adopting and ("parts" not in row or self._recovery.recovers_at(None, row, self._nodes.home))

    def start(self) -> None:
        """Have the last committed model (or the initial one) loaded."""
        self._checkpoints.load(self._adopting)
        look_for_copy(self)

    def job_opened(self, _report: o.JobOpened) -> None:
        """Begin, or go on: the model is in the arena."""
        self.status, self.commits.paused = "running", ""
        if self._checkpoints.settle(self._rows):
            self._adopting, self.commits.attempt = False, self._checkpoints.attempt
            self.keeping.settle(self.rounds.committed)
        self.keeping.tell(self.rounds.committed)
        self._publish("job.running", rounds=self.spec.config.job.rounds)
        self.stopping.opened()
        for node in self._nodes.others():
            self._open_at(node)
            self.copies.node_there(node)
        if self.rounds.committed < 0:
            self.rounds.committed = 0
            self.commits.save(Round(0, 0, self.spec.config.selection, self._turn.now, Phase.SAVING))
        go_on(self)

    def job_failed(self, report: o.JobFailed) -> None:
        """Go on from a copy, or an older checkpoint, if that to be loaded is lost or damaged; else end."""
        files = self._checkpoints
        if self.status == "loading" and (files.try_another(self._nodes.home) or files.try_older(report.text)):
            look_for_copy(self)
        else:
            self.end("failed", files.verdict or report.text)

    def _open_at(self, node: int) -> None:
        _attempt, _status, row = self._rows.get(self._replicas.model_round + 1, (0, "", {}))
        self._replicas.open_at(node, self._recovery.recovers_at(self.round, row, node))

    # ---- running: one round after the other ------------------------------------------------------------------------

    def _begin_round(self) -> None:
        """Begin the round after the last sealed one, or go on where an earlier life stopped.

        None begins after the last one, while the job is paused or ends, while its checkpoints cannot be written, while
        the last model is to be evaluated, and while two models wait for their checkpoints: an arena has room for the
        old and the new one (`planning/arena_need.py`), not for three.
        """
        self.edits.apply()
        number = self._replicas.model_round + 1
        if number > self.spec.config.job.rounds or self.round is not None or self.commits.paused or self._ending:
            return
        if len(self.rounds.saving) > 1 or self.evaluation.is_due(number - 1):
            return
        attempt, status, fields = self._rows.get(number, (self._attempt, "new", {}))
        # A later round on several nodes had begun before this one was durable: it begins anew, under another epoch.
        again = status in ("failed", "damaged") or (number > self.rounds.committed + 1 and "parts" in fields)
        recovers = is_left(self)
        if self.rounds.held and not recovers:
            return
        self._rows.pop(number, None)
        self._attempt = attempt + again
        self.rounds.current = Round(number, self._attempt, self.spec.config.selection, self._turn.now)
        self.rounds.current.top_only = not self._nodes.fits(self._nodes.home, self.spec.config.node_labels)
        if self._failed is not None and self._failed.number == number:
            self.rounds.current.follow(self._failed)
        self._failed = None
        self.edits.note()
        if not recovers and not self._nodes.moves:  # else its row is written when it opens, with its branches
            self._turn.emit(fx.SaveRound(self.name, number, self._attempt, "open", {}))
        self.runner.begin(fields if recovers else None)

    def model_sealed(self, report: o.ModelSealed) -> None:
        """Save the model that the top has made of the round, and go on with the next one."""
        self.tick()  # a round into which no more can come is closed, or fails
        round_ = self.round
        if round_ is None or round_.epoch != report.epoch:
            return
        round_.move(Phase.SAVING)  # AGGREGATING -> SAVING
        round_.sealed_s = self._turn.now
        round_.branches[0].cost = report.cost
        self.rounds.current = None
        self.selection.ended(round_)
        self._replicas.model_made(round_.number)
        self.commits.save(round_)
        self._attempt, self._failures = 1, 0
        self._begin_round()

    def model_saved(self, report: o.ModelSaved) -> None:
        """Note that a round's checkpoint is durable, and commit in order."""
        self.commits.saved(report)
        go_on(self)

    def branch_failed(self, report: o.BranchFailed) -> None:
        """Try the round again, or end: a branch cannot be finished."""
        if self.round is not None and self.round.epoch == report.epoch:
            if report.suspects is not None:
                self.round.suspects = frozenset(report.suspects)
                self.answers.spoil(self.round, report.suspects, report.text)
            if report.retry:
                self._fail_round(self.round, report.text)
            else:
                self._fail(report.text)

    def tick(self) -> None:
        """Do what is due."""
        if self.copies.next_timer() <= self._turn.now:
            self.copies.tick()
            self.commits.commit(self.commits.paused)
            go_on(self)
        settle_evaluation(self)
        reason = self.runner.tick()
        if reason and self.round is not None:
            self._fail_round(self.round, reason)

    def _fail_round(self, round_: Round, reason: str) -> None:
        """End the running round without a model; it is tried again, or the job fails."""
        self._drop_round(round_, reason)
        self._failures += 1
        if self._failures < self.spec.config.selection.attempts and self._attempt < ATTEMPTS_MAX:
            self._attempt += 1
            self._failed = round_
            self._begin_round()
        else:
            self._fail(f"round {round_.number} failed {self._failures} times, at last: {reason}")

    def _drop_round(self, round_: Round, reason: str) -> None:
        """End the running round without a model."""
        round_.move(Phase.FAILED)
        round_.reason = reason
        self.rounds.current = None
        self.selection.ended(round_)
        self._branches.drop(round_)
        row = {"reason": reason, "receipt": receipt_of(round_, self._turn.now)}
        self._turn.emit(fx.SaveRound(self.name, round_.number, round_.attempt, "failed", row))
        self._publish("round.failed", round=round_.number, reason=reason)
        self._presence.tell_all(self.name, round_.selected, cm.RoundOver(self.name, round_.number, reason))
        _drop_later(self, round_)

    def _fail(self, reason: str) -> None:
        """End the job as failed, as soon as what was sealed is committed: that was accepted, and is right."""
        end_soon(self, "failed", reason)

    # ---- over ------------------------------------------------------------------------------------------------------

    def end(self, status: str, reason: str) -> None:
        """Free everything that the job held: it is ``finished``, ``failed`` or ``cancelled``."""
        self._nodes.promised.pop(self.spec.number, None)
        self.status, self.reason, self.commits.paused, self.queued = status, reason, "", False
        for round_ in self.rounds.live():
            round_.move(Phase.FAILED)
            over = cm.RoundOver(self.name, round_.number, f"the job is {status}")
            self._presence.tell_all(self.name, round_.selected, over)
        self.rounds.current = None
        self.rounds.saving.clear()
        self.evaluation.drop()
        self.copies.close()
        self._replicas.close()
        self._turn.emit(fx.SaveJob(self.name, status, reason))
        self._presence.tell_all(self.name, self.present, cm.JobOver(self.name, status, reason))
        self._presence.remove_job(self.name)
        self.selection.reliability.close()
        self._publish("job.over", status=status, reason=reason)

    # ---- clients and nodes -----------------------------------------------------------------------------------------

    def join(self, here: Connection, event: gm.ClientJoined) -> None:
        """Let a client take part (again); one that still holds an update learns what became of it.

        Raise `Refused` when it is not on the job's list.
        """
        self.selection.list.check(self.name, event.client)
        self._presence.claim(self.name, event.client, here)
        if self.over:
            self.answers.tell_fates(here, event.client, event.holding)
            self._presence.send(here, cm.JobOver(self.name, self.status, self.reason))
            return
        said = None if isinstance(event.properties, msgspec.UnsetType) else event.properties
        selectable = self.selection.admits(event.client, said or NOTHING_SAID)
        self._presence.add(self.name, event.client, here, said, selectable)
        if self.rounds.numbered(event.holding) is None:
            self.answers.tell_fates(here, event.client, event.holding)
        self.answers.tell_spoilt(here, event.client)
        self.runner.joined(event.client, event.holding)
        self.evaluation.joined(event.client)
        settle_evaluation(self)

    def inventory(self, node: int, report: p.Inventory) -> None:
        """Note what a node that is connected (again) has of this job, and tell it of the job."""
        held = [branch for branch in report.branches if branch.number == self.spec.number]
        inventory = Inventory(held, fresh=self.spec.number not in report.jobs)
        if self.queued:  # it has nothing anywhere; who missed that is told again
            if self.spec.number in (*report.jobs, *report.orphans):
                self._turn.order(node, o.CloseJob(self.spec.number))
            return
        if self.status == "loading":
            self._recovery.keep(node, inventory)
            look_for_copy(self)
            return
        self._open_at(node)
        self.copies.node_there(node)
        self.runner.inventory(node, inventory)

    def node_leaves(self, node: int) -> None:
        """Move the work of a node that is about to go."""
        if self.round is not None:
            self._branches.node_leaves(self.round, node)

    def node_renewed(self, node: int) -> None:
        """Wait for what a node has whose `lifld` has started again."""
        self._recovery.node_renewed(self.round, node)

    def _publish(self, name: str, **fields: Any) -> None:
        self._turn.emit(fx.Publish(name, self.name, fields))

    def faults(self) -> Iterator[str]:
        """Yield what cannot be."""
        books = (self.rounds, self.selection.reliability, self.copies, self.evaluation)
        own = (fault for each in books for fault in each.faults())
        yield from (f"job {self.name}: {fault}" for fault in own)
        if self.over and (self.rounds.live() or self.present):
            yield f"job {self.name} is {self.status}, and has rounds or clients"
        if self.status == "loading" and self.rounds.live():
            yield f"job {self.name} has rounds before its model is there"


def look_for_copy(job: Job) -> None:
    """Have the model loaded from another node's copy, when home has none and such a node is there."""
    node = job._checkpoints.next_holder()
    if node is not None:
        job._open_at(node)
        job._checkpoints.serve(node)
    if job._checkpoints.waits != job.commits.paused and job.status == "loading":
        job.commits.paused = job._checkpoints.waits
        if job.commits.paused:
            job._publish("job.paused", reason=job.commits.paused)


def go_on(job: Job) -> None:
    """Go on when what is durable is committed."""
    if job._ending is not None:
        if not job.rounds.saving:
            job.end(*job._ending)
        return
    job.edits.apply()
    if job.evaluation.is_due(job.rounds.committed) and job.rounds.committed == job._replicas.model_round:
        if job.evaluation.waits():
            return
        job.evaluation.begin(job.rounds.committed, job.commits.attempt)
        if job.evaluation.current is not None:
            return
    if job.rounds.committed >= job.spec.config.job.rounds:
        job.end("finished", "")
    elif job.stopping.reason:
        end_soon(job, "finished", job.stopping.reason)
    else:
        job._begin_round()


def is_left(job: Job) -> bool:
    """Return whether an earlier life has left the next round open, which goes on with what was accepted for it."""
    number = job._replicas.model_round + 1
    _attempt, status, fields = job._rows.get(number, (0, "new", {}))
    if number > job.rounds.committed + 1 and "parts" in fields:
        return False
    return status == "open" and (job._adopting or "parts" in fields)


def let_go(job: Job) -> bool:
    """Give back what a paused job has of all arenas; return False while something of it is under way there.

    A round that waits for its clients is dropped: nobody was asked yet.  It is begun again when the job goes on, which
    is then loaded from its last checkpoint.  One that an earlier life has left open is under way, before it begins too.
    """
    round_ = job.round
    waits = round_ is not None and round_.phase is Phase.WAITING
    if not job.rounds.held or job.status != "running" or job.rounds.saving or job.evaluation.current is not None:
        return False
    if is_left(job) if round_ is None else not waits:
        return False
    if round_ is not None:
        job._failed, job.rounds.current = round_, None
    job.status, job.queued, job._adopting = "loading", True, False
    job._nodes.promised.pop(job.spec.number, None)
    job._replicas.close()
    return True


def _drop_later(job: Job, failed: Round) -> None:
    """Note that rounds which an earlier life had begun behind one that has failed begin anew, with another model."""
    row = {"reason": f"round {failed.number}, whose model it had, is made anew"}
    for number, (attempt, status, _fields) in list(job._rows.items()):
        if number > failed.number and status == "open":
            job._rows[number] = (attempt, "failed", row)
            job._turn.emit(fx.SaveRound(job.name, number, attempt, "failed", row))


def end_soon(job: Job, status: str, reason: str) -> None:
    """End the job as soon as what was sealed is committed: that was accepted, and is right."""
    if not job.rounds.saving:
        job.end(status, reason)
        return
    job._ending = (status, reason)
    if job.round is not None:
        job._drop_round(job.round, reason)


def function_returned(job: Job, report: FunctionReturned) -> None:
    """Go on by what a function of the user's has returned."""
    if report.key == STOPS:
        job.stopping.answered(report)
        if job.stopping.reason and job._ending is None:
            end_soon(job, "finished", job.stopping.reason)
    elif (fault := job.selection.chosen(job.round, report)) and job.round is not None:
        job._fail_round(job.round, fault)
    else:
        job.runner.try_open()


def settle_evaluation(job: Job) -> None:
    """Go on when the evaluation that runs is over, or may begin that an earlier life has left."""
    if not job.over and job.status == "running" and job.evaluation.is_left and not job.evaluation.waits():
        go_on(job)
    if job.over or not job.evaluation.is_over:
        return
    number, attempt, found = job.evaluation.finish()
    values = values_of_evaluation(found)
    job.stopping.note(number, values)
    more = {"stopping": job.stopping.seen} if job.stopping.seen else {}
    more |= job.keeping.evaluated(number, values)
    job._turn.emit(fx.SaveEvaluation(job.name, number, attempt, {"evaluation": found, **more}))
    go_on(job)


def clients_left(job: Job, clients: Sequence[str], by_themselves: bool = False) -> None:
    """Note that clients are gone; others may be selected in their place."""
    job.runner.left(clients, by_themselves)
    settle_evaluation(job)


def copy_heard(job: Job, node: int, report: o.ModelCopied | o.CopyServed | o.CopyFailed) -> None:
    """Note what became of a copy of a model: one that a node makes, or one that it is to serve."""
    if job.status == "running" and not isinstance(report, o.CopyServed):
        job.copies.heard(node, report)
        job.commits.commit(job.commits.paused)
        go_on(job)
    elif job.status == "loading" and isinstance(report, o.CopyServed):
        job._checkpoints.served(node)
    elif job._checkpoints.asks(node) and isinstance(report, o.CopyFailed):
        if not job._checkpoints.try_another(node) and not job._checkpoints.try_older(report.text):
            job.end("failed", job._checkpoints.verdict or report.text)
            return
        look_for_copy(job)


def node_gone(job: Job, node: int) -> None:
    """Go on without a node that is dead, or has left."""
    job.runner.node_gone(node)
    if job.status == "loading":
        job._checkpoints.node_gone(node)
        look_for_copy(job)
    elif job.copies.wanted and not job.over:
        job.copies.node_gone(node)
        job.commits.commit(job.commits.paused)
        go_on(job)
    settle_evaluation(job)  # its clients may be gone with it


def next_timer(job: Job) -> float:
    """Return when `tick` is due; infinity: not before something happens."""
    evaluation_s = job.evaluation.next_timer() if job.status == "running" else math.inf
    return min(job.runner.next_timer(), job.copies.next_timer(), evaluation_s, job.due_s)
