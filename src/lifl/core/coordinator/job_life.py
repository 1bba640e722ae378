"""What a user may do to a job while it runs: pause it and let it go on, and change its config.

A *paused* job begins no round; the one that has begun is finished, then the job gives its room in the arenas back
(`job_queue.py`), and its clients wait.  A change of the config counts
from the next round on (`edits.py`).  Both are durable before anything follows from them.
"""

from __future__ import annotations

from lifl.core import effects as fx
from lifl.core.config.edits import Edited
from lifl.core.coordinator.coordinator import Coordinator, running_job
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.job_queue import reason_of
from lifl.core.coordinator.round import Phase
from lifl.core.errors import Refused

BY_THE_USER = "by the user"


def next_round(job: Job) -> int:
    """Return the number of the next round that begins."""
    round_ = job.round
    if round_ is None or round_.phase is Phase.WAITING:
        return job._replicas.model_round + 1
    return round_.number + 1


def check_pause(job: Job, paused: bool) -> None:
    """Raise `Refused` unless a job that runs may be paused, or (not `paused`) let go on."""
    if job.spec.is_fold:
        raise Refused("not-host", "job", f"job {job.name!r} is a session of folds: its host alone says when one begins")
    if paused and job.rounds.held:
        raise Refused("job-paused", "job", f"job {job.name!r} is paused already; `lifl resume {job.name}` ends that")
    if not paused and not job.rounds.held:
        text = (
            f"job {job.name!r} is not paused, and not over; `lifl edit {job.name} --set job.rounds=N` gives it others"
        )
        raise Refused("job-runs", "job", text)


def pause(coordinator: Coordinator, name: str) -> None:
    """Begin no further round of a job.  Raise as `running_job` and `check_pause`."""
    job = running_job(coordinator, name)
    check_pause(job, paused=True)
    with coordinator._turn.share(job.spec.number):
        job.rounds.held = True
        job._turn.emit(fx.SaveJob(job.name, "running", reason_of(job)))
        job._publish("job.paused", reason=BY_THE_USER)
        coordinator.queue.rest(job)
    coordinator._try_open()  # it may have stood before another one, or have had the room for that


def unpause(coordinator: Coordinator, name: str) -> None:
    """Begin rounds of a job again.  Raise as `running_job` and `check_pause`."""
    job = running_job(coordinator, name)
    check_pause(job, paused=False)
    with coordinator._turn.share(job.spec.number):
        job.rounds.held = False
        job._turn.emit(fx.SaveJob(job.name, "running", reason_of(job)))
        job._publish("job.goes_on", committed=job.rounds.committed)
        if job.status == "running":
            job._begin_round()
            job.runner.try_open()
    coordinator.queue.advance()


def check_edit(job: Job, edit: Edited) -> None:
    """Raise `Refused` when the config of a job that runs cannot become this one."""
    if job.spec.is_fold:
        raise Refused("not-host", "job", f"job {job.name!r} is a session of folds: its host alone has a say in it")
    number = job.round.number if job.round is not None else job._replicas.model_round
    if edit.config.job.rounds < number:
        text = f"round {number} of job {job.name!r} has begun: at least {number}, or `lifl cancel {job.name}`"
        raise Refused("bad-config", "job.rounds", text)


def edit(coordinator: Coordinator, name: str, edit: Edited) -> None:
    """Change the config of a job, from its next round on.  Raise as `running_job` and `check_edit`."""
    job = running_job(coordinator, name)
    check_edit(job, edit)
    with coordinator._turn.share(job.spec.number):
        job._turn.emit(fx.SaveConfig(job.name, edit.config))
        job._publish("job.edited", changes=edit.changes)
        if job.queued:
            job.edits.take(edit)
        else:
            job.edits.waiting.append(edit)
        if job.status == "running":
            job.edits.apply()
            job._begin_round()
    coordinator.queue.advance()
