"""A job as its user and its trainers know it, and what of it is on the disk: rows and checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sim_checks import must

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.config.job import parse_job
from lifl.core.coordinator.job_queue import row_before
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.ids import epoch_of
from lifl.core.schema import Layout, TensorSpec

if TYPE_CHECKING:
    from sim_arena import SimStore
    from sim_clients import SimClient

METRICS_TOLERANCE = 1e-9


class JobPlan(NamedTuple):
    """What is drawn of a job: its configuration, the bytes of its model, how many trainers it has."""

    config: Mapping[str, Any]
    model_bytes: int
    clients: int


class SimJob:
    """One job; `row` is its row in the database, None before it was submitted (and when that was refused)."""

    def __init__(self, number: int, plan: JobPlan, folder: str = "") -> None:
        self.number, self.plan = number, plan
        self.config = parse_job(plan.config)
        self.name = self.config.job.name
        self.layout = Layout((TensorSpec("w", "float32", (plan.model_bytes // 4,)),))
        self.facts = ev.JobFacts(number, self.config, self.layout.tensors, (), folder or f"/jobs/{self.name}")
        self.spec = JobSpec(number, self.config, self.layout, (), self.facts.folder)
        self.clients: dict[str, SimClient] = {}
        self.row: tuple[str, str] | None = None
        self.refused = False
        self.cancelled = False
        self.excuse = ""  # why it may fail: what was done to it
        self.tells_kept = False  # to the next life, which of its models stay: older lives are as they were without
        self.rounds: dict[tuple[int, int], tuple[str, dict[str, Any]]] = {}  # rows by round and attempt
        self.commits: dict[int, Counter[str]] = {}

    @property
    def over(self) -> bool:
        """True when its row says so, or it will never be there."""
        return self.refused or (self.row is not None and self.row[0] != "running")

    @property
    def committed(self) -> int:
        """The last committed round, -1: none."""
        return max((number for (number, _), (status, _) in self.rounds.items() if status == "committed"), default=-1)

    def history(self) -> ev.JobHistory:
        """Return what a daemon that starts again finds in the database."""
        last, tried = self.committed, {}
        for (number, attempt), (status, fields) in sorted(self.rounds.items()):
            if number > last:
                tried[number] = (attempt, status, fields)
        stand = [(n, attempt, f) for (n, attempt), (status, f) in self.rounds.items() if status == "committed"]
        counted = {number: frozenset(fields["members"]) for number, _, fields in stand}
        models = {number: (attempt, ()) for number, attempt, _ in stand}
        terms = {number: fields["term"] for number, _, fields in stand if "term" in fields}
        keeps = {number: fields["keep"] for number, _, fields in stand if self.tells_kept}
        evaluated = any(number == last and "evaluation" in fields for number, _, fields in stand)
        return ev.JobHistory(last, tried, counted, models, terms, evaluated=evaluated, keeps=keeps)

    def history_again(self) -> ev.JobHistory:
        """Return what a job that was over goes on from: what it had begun, and not committed, begins anew."""
        history, tried = self.history(), {}
        for number, (attempt, status, _fields) in history.tried.items():
            tried[number] = (attempt, "failed" if status == "open" else status, {})
        return msgspec.structs.replace(history, tried=tried)


class Disk:
    """The database's rows (in the jobs) and the checkpoints of all jobs."""

    def __init__(self, jobs: Mapping[str, SimJob], calm: bool) -> None:
        self._jobs = jobs
        self.calm = calm  # nothing fails, and no round is short of clients
        self.files: dict[str, Counter[str]] = {}
        self.removed: set[str] = set()  # of the files: those that were not to stay
        self.damaged: set[str] = set()  # of the files, and of the users' models: those that cannot be read any more

    def enters(self, job: SimJob) -> None:
        """Keep what `lifl submit` and `lifl resume` write of a job before the engine is told of it."""
        self.save_job(row_before(job.name))

    def save_job(self, effect: fx.SaveJob) -> None:
        """Keep what has become of a job."""
        job = self._jobs[effect.job]
        job.row = (effect.status, effect.reason)
        if effect.status == "running":
            return
        for client in job.clients.values():  # what was accepted has expired, with a reason
            client.accepted.clear()
        expected = "cancelled" if job.cancelled else "finished"
        tried_out = effect.reason.startswith("round") and "times, at last" in effect.reason
        may = effect.status == expected or (effect.status == "failed" and (job.excuse or tried_out))
        must(may, "jobs-apart", f"job {job.name!r} is {effect.status}: {effect.reason!r}")

    def save_config(self, effect: fx.SaveConfig) -> None:
        """Keep what a job's config has become."""
        job = self._jobs[effect.job]
        job.config = effect.config
        job.facts = msgspec.structs.replace(job.facts, config=effect.config)

    def save_round(self, effect: fx.SaveRound, home: SimStore) -> None:
        """Keep a round's row, and look at what is in it."""
        job, number = self._jobs[effect.job], effect.round
        if effect.status == "committed":
            self._look_at_commit(job, effect, home)
        elif effect.status == "failed":  # what was accepted has expired, with a reason
            reason = effect.fields["reason"]
            must(not self.calm, "begun-ends", f"round {number} of job {job.name!r} failed: {reason}")
            for client in job.clients.values():
                client.settled(number)
        job.rounds[number, effect.attempt] = (effect.status, effect.fields)

    def save_evaluation(self, effect: fx.SaveEvaluation) -> None:
        """Keep what the evaluation of a committed round has found."""
        what = f"round {effect.round} of job {effect.job!r}"
        status, fields = self._jobs[effect.job].rounds.get((effect.round, effect.attempt), ("unknown", {}))
        must(status == "committed", "evaluated", f"{what} is {status}, and was evaluated")
        must("evaluation" not in fields, "evaluated", f"{what} is evaluated a second time")
        found = effect.fields["evaluation"]
        must(found["clients"] <= found["selected"], "evaluated", f"{what}: {found}")
        fields.update(effect.fields)

    def set_aside(self, effect: fx.SetAside) -> None:
        """Let no round after this one stand any more: what was accepted for those has expired, with a reason."""
        job = self._jobs[effect.job]
        for (number, attempt), (status, fields) in job.rounds.items():
            if number > effect.above and status in ("committed", "open"):
                job.rounds[number, attempt] = ("damaged", fields)
                job.commits.pop(number, None)
            elif number == effect.above:
                fields.pop("evaluation", None)  # it is evaluated again, as the last that stands
        for client in job.clients.values():
            for number in [number for number in client.accepted if number > effect.above]:
                client.settled(number)

    def keep(self, effect: fx.KeepModels) -> None:
        """Remove the files of committed rounds that do not stay."""
        for (number, _attempt), (status, fields) in self._jobs[effect.job].rounds.items():
            path = fields.get("path", "")
            if status == "committed" and not effect.kept.has(number) and self.files.pop(path, None) is not None:
                self.removed.add(path)

    def not_to_stay(self, job: SimJob) -> list[str]:
        """Return the files of committed rounds that were to go by now, by the job's config."""
        keep = job.config.checkpoint.kept
        from_ = job.committed - keep.last + 1
        stay = {n for n, _ in job.rounds if n >= from_ or keep.best or (keep.every and n % keep.every == 0)}
        rows = [(number, fields) for (number, _), (status, fields) in job.rounds.items() if status == "committed"]
        return [fields["path"] for number, fields in rows if number not in stay and fields["path"] in self.files]

    def look_at_file(self, job: SimJob, number: int, path: str) -> None:
        """Look whether a checkpoint that was committed is there as it was."""
        what, content = f"round {number} of job {job.name!r}", self.files.get(path)
        must(content is not None, "rows-first", f"{what} is committed, and {path} is not there")
        told = f"{what} was committed as {job.commits.get(number)}, and {path} has {content}"
        must(content == job.commits.get(number, content), "counted-once", told)

    def _look_at_commit(self, job: SimJob, effect: fx.SaveRound, home: SimStore) -> None:
        number, last = effect.round, job.committed
        what = f"round {number} of job {job.name!r}"
        must(number > last, "one-commit", f"{what} is committed, and {last} is already")
        must(number == last + 1, "commit-order", f"{what} is committed after {last}")
        content = self.files.get(effect.fields["path"])
        must(content is not None, "rows-first", f"{what} is committed, and its checkpoint is not written")
        if not number:
            return
        members = effect.fields["members"]
        expected = Counter({f"{job.name}/{member}": 1 for member in members})
        must(content == expected, "counted-once", f"{what} has {content}, its members are {members}")
        must(_metrics(job, members) == effect.fields["metrics"], "counted-once", f"{what} has other metrics")
        epoch = epoch_of(number, effect.attempt)
        mine = (thing for thing in home.things.values() if (thing.job, thing.epoch) == (job.number, epoch))
        here = {name for thing in mine if thing.sealed for name in thing.content}
        must(expected.keys() <= here, "rows-first", f"{what} is not written, and {expected.keys() - here} are gone")
        job.commits[number] = content


def _metrics(job: SimJob, members: list[str]) -> Any:
    clients = [job.clients[member] for member in members]
    sent = [(client.metrics["loss"], client.weight) for client in clients if client.metrics]
    return Approx(sum(value * weight for value, weight in sent) / sum(weight for _, weight in sent)) if sent else {}


class Approx:
    """Equals the metrics ``{"loss": about this}``."""

    def __init__(self, loss: float) -> None:
        self._loss = loss

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and [*other] == ["loss"] and abs(other["loss"] - self._loss) < METRICS_TOLERANCE

    __hash__ = None  # type: ignore[assignment]
