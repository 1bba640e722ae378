"""The tasks in which a user's function is called: it looks at a model, selects clients, or says that a job is to stop.

Of each kind one runs at a time, in a worker that is the job's own.  What the function raises, returns or does to its
process ends its task, and nothing else: the coordinator is told.
"""

from __future__ import annotations

from lifl.core.agent.model_slot import ModelSlot
from lifl.core.agent.outcomes import CallEnded, EvaluationEnded, NotFiniteAt, Outcome
from lifl.core.agent.replica_spec import ReplicaSpec
from lifl.core.agent.task_table import TaskTable
from lifl.core.fields import Message
from lifl.core.ids import Key
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.planning.tree import Task, TaskState
from lifl.core.protocol import worker as wm
from lifl.core.protocol.evaluations import EvaluateModel, ModelEvaluated
from lifl.core.protocol.user_calls import CallFunction, FunctionReturned
from lifl.core.turn import Turn


class EvaluationTasks:
    """The evaluation task of one job on this node (`task_table.Runner`)."""

    key = "evaluation.server"
    deadline = "evaluation.deadline_s"

    def __init__(self, spec: ReplicaSpec, slot: ModelSlot, tasks: TaskTable, turn: Turn) -> None:
        self.job = spec.number
        self.deadline_s = 0.0
        self.workers = 0
        self.tie = spec.number
        self.code = ""
        self._spec = spec
        self._slot = slot
        self._tasks = tasks
        self._turn = turn
        self._running: tuple[Task, EvaluateModel | CallFunction] | None = None

    def begin(self, order: EvaluateModel | CallFunction) -> None:
        """Have the function called, in the place of what runs yet."""
        self._drop()
        model = self._slot.model
        if model is None or not self._is_about(order):
            self._turn.report(self._lacking(order))
            return
        self.deadline_s, self.code = order.deadline_s, f"function {order.function} ({self.key})"
        task = Task(0, "evaluate", 0)
        task.inputs = self._looked_at(model)
        self._slot.pin(task.inputs)
        task.move(TaskState.OPEN)
        self._tasks.open(self, task)
        self._running = (task, order)
        task.move(TaskState.PLACING)
        self._tasks.place(task)

    def close(self) -> None:
        """Give up what runs: the job is over."""
        self._drop()

    def read(self) -> list[Key]:
        """Return the objects that are looked at."""
        return [] if self._running is None else self._running[0].inputs

    def _drop(self) -> None:
        if self._running is not None:
            task, _order = self._running
            self._end(task)
            self._tasks.abandon(task, [])

    def _end(self, task: Task) -> None:
        self._running = None
        task.move(TaskState.DROPPED)
        for key in task.inputs:
            self._slot.unpin(key)

    # ---- what differs by the kind ------------------------------------------------------------------------------------

    def _is_about(self, order: EvaluateModel | CallFunction) -> bool:
        return isinstance(order, EvaluateModel) and self._slot.round == order.round

    def _looked_at(self, model: Key) -> list[Key]:
        return [model]

    def _lacking(self, order: EvaluateModel | CallFunction) -> ModelEvaluated | FunctionReturned:
        number = order.round if isinstance(order, EvaluateModel) else 0
        return ModelEvaluated(self.job, number, {}, "the model is not here any more")

    def _outcome(self, order: EvaluateModel | CallFunction, done: wm.TaskDone | None, fault: str) -> Outcome:
        number = order.round if isinstance(order, EvaluateModel) else 0
        return EvaluationEnded(self.job, number, dict(done.metrics) if done is not None else {}, fault)

    # ---- task_table.Runner -----------------------------------------------------------------------------------------

    def served(self, task: Task) -> tuple[str, int]:
        """Return what a worker of this task has served."""
        return self._spec.name, -1

    def placed(self, task: Task, how: str) -> None:
        """Take note of how a worker was found: no receipt counts it."""

    def message(self, task: Task) -> Message:
        """Return what the worker is told."""
        assert self._running is not None
        order, spec = self._running[1], self._spec
        assert isinstance(order, EvaluateModel)
        at = (task.address, task.attempt, spec.name, order.round)
        what = (order.function, spec.aggregation.rule_folder, spec.layout.packed, task.inputs[0].pack())
        return wm.Evaluate(*at, *what)

    def restarting(self, task: Task) -> None:
        """Prepare a task whose worker died for the next one: it looks anew."""

    def done(self, task: Task, cost: wm.TaskDone | None) -> list[Outcome]:
        """End a task whose function has returned."""
        assert self._running is not None
        order = self._running[1]
        self._end(task)
        self._tasks.close(task)
        return [self._outcome(order, cost, "")]

    def failed(self, task: Task, text: str, retry: bool, place: NotFiniteAt | None = None) -> list[Outcome]:
        """End a task whose function has raised something, has ended its process or does not return."""
        assert self._running is not None
        order = self._running[1]
        if task.failed:
            text = f"{self.code} did not end within {order.deadline_s:g} s ({self.deadline})"
        self._end(task)
        self._tasks.abandon(task, [])
        return [self._outcome(order, None, text[:TEXT_CHARS_MAX])]


class CallTasks(EvaluationTasks):
    """The task that calls the function which a `key` of the job's config names; it looks at no model."""

    deadline = "the most that it may take"

    def __init__(self, spec: ReplicaSpec, slot: ModelSlot, tasks: TaskTable, turn: Turn, key: str) -> None:
        super().__init__(spec, slot, tasks, turn)
        self.key = key

    def _is_about(self, order: EvaluateModel | CallFunction) -> bool:
        return True

    def _looked_at(self, model: Key) -> list[Key]:
        return []

    def _lacking(self, order: EvaluateModel | CallFunction) -> ModelEvaluated | FunctionReturned:
        call = order.call if isinstance(order, CallFunction) else 0
        return FunctionReturned(self.job, call, self.key, fault="the job's model is not here")

    def _outcome(self, order: EvaluateModel | CallFunction, done: wm.TaskDone | None, fault: str) -> Outcome:
        call = order.call if isinstance(order, CallFunction) else 0
        return CallEnded(self.job, call, self.key, done.answer if done is not None else b"", fault)

    def message(self, task: Task) -> Message:
        """Return what the worker is told."""
        assert self._running is not None
        order, spec = self._running[1], self._spec
        assert isinstance(order, CallFunction)
        at = (task.address, task.attempt, spec.name, spec.number, self.key)
        return wm.Call(*at, order.function, spec.aggregation.rule_folder, order.given)
