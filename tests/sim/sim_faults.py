"""What goes wrong in a life: processes die, stand still, lose connections; disks are full; the user changes his mind.

All is drawn from the life's one seed.  `chance` is that of one fault per step; 0 is a life without any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim_checks import must

from lifl.core import events as ev
from lifl.core.errors import Refused
from lifl.core.schema import TensorSpec

if TYPE_CHECKING:
    from sim_host import Host
    from sim_jobs import SimJob
    from simulator import Cluster

FREEZE_S = (0.1, 30.0)
JUMP_S = (60.0, 900.0)
CANCELS = 0.3
DRAINS = STALLS = 0.01
"""The chance of one per step, in lives that have them."""
ASLEEP = 0.3
"""How many stalls are those of a whole host; the others are connections that are half open."""
NO_JOB = "no-such-job"


class Faults:
    """Draws faults, and has them happen."""

    def __init__(self, cluster: Cluster, chance: float) -> None:
        self._cluster = cluster
        self.chance = chance
        self.is_quiet = False

    def quiet(self) -> None:
        """Let nothing go wrong any more; what stood still goes on."""
        self.chance, self.is_quiet = 0.0, True
        for host in self._cluster.hosts.values():
            host.frozen_until = host.asleep_until = 0.0
            host.readers = [reader._replace(stuck=False) for reader in host.readers]
            for worker in host.workers.values():
                worker.frozen_until, worker.stopped = 0.0, False

    # ---- questions: does this go wrong? ----------------------------------------------------------------------------

    def _drawn(self, times: float) -> bool:
        return self._cluster.rng.random() < self.chance * times

    def dies(self) -> bool:
        """Return whether a worker dies at this place."""
        return self._drawn(2.0)

    def dies_unheard(self) -> bool:
        """Return whether a worker dies before the daemon has heard of what it has sealed and sent on."""
        return self._drawn(4.0)

    def daemon_dies(self) -> bool:
        """Return whether the coordinating daemon is killed between two effects."""
        return self._drawn(0.25)

    def deposed(self) -> bool:
        """Return whether another node coordinates by the time that a row comes to the store."""
        return self._drawn(1.0)

    def row_fails(self) -> bool:
        """Return whether a row cannot be written, of which the daemon dies."""
        return self._drawn(0.1)

    def task_fails(self) -> bool:
        """Return whether the user's rule raises."""
        return self._drawn(0.05)

    def file_fails(self) -> bool:
        """Return whether a file cannot be read or written."""
        return self._drawn(0.3)

    def bad_content(self) -> bool:
        """Return whether an update is not finite; its client does not send another."""
        return self._drawn(1.0)

    def loses(self) -> bool:
        """Return whether a transfer between nodes is lost."""
        return self._drawn(2.0)

    def declines(self) -> bool:
        """Return whether a client that is selected leaves instead."""
        return self._drawn(2.0)

    def sticks(self) -> bool:
        """Return whether a client reads a model no further."""
        return self._drawn(4.0)

    # ---- events ----------------------------------------------------------------------------------------------------

    def strike(self) -> bool:
        """Have a fault happen, if one is drawn."""
        if not self._drawn(1.0):
            return False
        cluster, rng = self._cluster, self._cluster.rng
        host = rng.choice(list(cluster.hosts.values()))
        kind = rng.random()
        if host.engine is None:
            cluster.lives.link(host)
        elif kind < 0.35:
            if host.workers:
                cluster.workers.kill(host, rng.choice(list(host.workers.values())))
        elif kind < 0.50:
            self._disconnect_one(host)
        elif kind < 0.58:
            cluster.lives.kill_gateway(host)
        elif kind < 0.68:
            self._freeze(host)
        elif kind < 0.71:
            self.jump()
        elif kind < 0.80:
            self._user()
        else:
            self._host_fails(host)
        return True

    def drain(self) -> bool:
        """Let the user drain a host, or take that back, in lives that have that; return whether it was done."""
        cluster, rng = self._cluster, self._cluster.drains
        if rng is None or self.is_quiet or rng.random() >= DRAINS:
            return False
        host = rng.choice(list(cluster.hosts.values()))
        if not cluster.hears:
            return False
        coordinator = cluster.engine.coordinator
        known = coordinator is not None and host.number in coordinator.nodes and host is not cluster.home
        undo = rng.random() < 0.5
        must(self._refused(ev.NodeDrained(host.number, undo)) is not known, "drained", f"host {host.number}")
        return True

    def stall(self) -> bool:
        """Let a host stand still, or a client leave unnoticed, in lives that have that; return whether it was done."""
        cluster, rng = self._cluster, self._cluster.stalls
        if rng is None or self.is_quiet or rng.random() >= STALLS:
            return False
        host = rng.choice(list(cluster.hosts.values()))
        if rng.random() < ASLEEP:
            self.fall_asleep(host, rng.uniform(*FREEZE_S))
            return True
        here = [client for client in host.by_conn.values() if client.host is host]
        if here:
            cluster.clients.vanish(rng.choice(here))
        return bool(here)

    def fall_asleep(self, host: Host, seconds: float) -> None:
        """Let all of a host stand still: it wakes up and goes on with what it was at."""
        if host.engine is not None:
            host.asleep_until = self._cluster.now + seconds

    def _disconnect_one(self, host: Host) -> None:
        here = [client for client in host.by_conn.values() if client.host is host]
        if here:
            self._cluster.clients.disconnect(self._cluster.rng.choice(here))

    def _freeze(self, host: Host) -> None:
        """Let a worker or the gateway stand still: it neither answers nor dies."""
        rng = self._cluster.rng
        until = self._cluster.now + rng.uniform(*FREEZE_S)
        if host.workers and rng.random() < 0.7:
            worker = rng.choice(list(host.workers.values()))
            worker.frozen_until, worker.stopped = until, rng.random() < 0.5
        else:
            host.frozen_until = until

    def jump(self) -> None:
        """Let minutes pass while nothing happens; what is due by then may come before or after what waits."""
        cluster = self._cluster
        cluster.pass_time(cluster.now + cluster.rng.uniform(*JUMP_S))
        if cluster.rng.random() < 0.5:
            cluster.tick()

    def _host_fails(self, host: Host) -> None:
        cluster = self._cluster
        kind = cluster.rng.random()
        if host is cluster.home and cluster.moves and kind < 0.6:
            cluster.lives.depose()
        elif host is cluster.home:
            cluster.lives.crash()
        elif host.linked and kind < 0.4:
            cluster.lives.unlink(host)
        elif host.linked and kind < 0.55:
            host.leaving = True
            cluster.handle(host, ev.Leaving())
        else:
            cluster.lives.node_dies(host, keep=cluster.rng.random() < 0.6)

    # ---- the user --------------------------------------------------------------------------------------------------

    def _user(self) -> None:
        """Cancel a job (also one that is over, or unknown), or submit one that must be refused."""
        cluster, rng = self._cluster, self._cluster.rng
        if not cluster.hears:
            return
        if rng.random() < CANCELS:
            name = rng.choice([*cluster.jobs, NO_JOB])
            self.cancel(name)
            if rng.random() < 0.3:
                self.cancel(name)
        else:
            begun = [job for job in cluster.jobs.values() if job.row is not None]
            if begun:
                self._submit_refused(rng.choice(begun))

    def cancel(self, name: str) -> None:
        """Cancel a job; it must be refused where there is none that runs."""
        cluster = self._cluster
        job = cluster.jobs.get(name)
        runs = job is not None and not job.refused and job.row is not None and job.row[0] == "running"
        if job is not None and runs:
            job.cancelled = True
        engine = cluster.home.engine
        refused = self._refused(ev.JobCancelled(name))
        if runs and job is not None and engine is cluster.home.engine:
            must(not refused and job.over, "cancel-frees", f"job {name!r} is cancelled, and {job.row}")
            left = cluster.engine.agent.replicas.keys() & {job.number}
            must(not left, "cancel-frees", f"job {name!r} is cancelled, and its replica is open")
        elif runs and job is not None and not job.over:
            job.cancelled = False  # the daemon died before the row was written: the user is told nothing
        assert runs or refused, f"job {name!r} was cancelled, which does not run"

    def _submit_refused(self, like: SimJob) -> None:
        """Submit a job whose name is taken, or one that can never fit."""
        facts, cluster = like.facts, self._cluster
        if cluster.rng.random() < 0.5:
            tensor = TensorSpec("w", "float32", (cluster.home.arena_bytes,))
            section = type(facts.config.job)("too-large", facts.config.job.rounds)
            config = type(facts.config)(section, facts.config.selection, facts.config.model, facts.config.aggregation)
            facts = ev.JobFacts(99, config, (tensor,), (), "/jobs/too-large")
        assert self._refused(ev.JobSubmitted(facts)), f"{facts.config.job.name!r} was not refused"

    def _refused(self, event: Any) -> bool:
        """Hand in what the user wants; return whether it was refused."""
        try:
            self._cluster.handle(self._cluster.home, event)
        except Refused:
            assert not self._cluster.engine.writing, "a refusal has changed something"
            return True
        return False
