"""Daemons, machines and connections of the simulated cluster: how they end, and how they begin anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim_arena import SimStore
from sim_checks import must

from lifl.core import events as ev
from lifl.core.ids import Key, round_of
from lifl.core.protocol.gateway import GatewayLost

if TYPE_CHECKING:
    from sim_host import Host
    from sim_jobs import SimJob
    from simulator import Cluster

SLOW_S = 0.5


class Lives:
    """Ends and begins what runs on hosts."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    # ---- agents ----------------------------------------------------------------------------------------------------

    def link(self, host: Host) -> None:
        """Connect an agent to its coordinator, as the life that it was or as a new one."""
        cluster = self._cluster
        if host.engine is None:
            host.begin(coordinates=False, now=cluster.now)
            host.incarnation += 1
            cluster.handle(host, ev.ArenaAdopted(*self._left_in(host)))
        elif host.buried:
            cluster.handle(host, ev.LifeEnded())
            host.incarnation += 1
        host.linked, host.buried = True, False
        cluster.handle(cluster.home, host.up())
        if host.linked:  # else the coordinator died of it
            cluster.handle(host, ev.CoordinatorUp(stranger=False))

    def unlink(self, host: Host) -> None:
        """Break the connection: what was on its way on it is lost; what its gateway sends may come later."""
        self._cut(host)
        if self._cluster.rng.random() < 0.3:
            host.frozen_until = self._cluster.now + SLOW_S
        self._cluster.handle(self._cluster.home, ev.NodeSuspect(host.number, True))

    def _cut(self, host: Host) -> None:
        host.linked = False
        host.orders.clear()
        host.reports.clear()
        self._cluster.handle(host, ev.CoordinatorDown())

    def bury(self, host: Host) -> None:
        """Let the coordinator declare a node dead, of which it has heard nothing for too long."""
        host.buried = True
        self._cluster.handle(self._cluster.home, ev.NodeGone(host.number))

    def leaves(self, host: Host) -> None:
        """End `lifl down` on an agent."""
        self.node_dies(host)
        self.bury(host)

    def node_dies(self, host: Host, keep: bool = False) -> None:
        """End the daemon, and unless it is to `keep` its arena all of the machine.

        The coordinator may notice before the next life is there, or not.
        """
        cluster = self._cluster
        self._stop(host)
        if keep:
            host.store.begin_again()
        else:
            host.store = SimStore(host.arena_bytes, host.number)
            host.store.now = cluster.now
        cluster.handle(cluster.home, ev.NodeSuspect(host.number, True))

    def _stop(self, host: Host) -> None:
        """End all processes of a host; clients notice at once, direct ones keep writing for a while."""
        for job in self._cluster.jobs.values():
            for client in job.clients.values():
                if client.host is host:
                    self._leave_behind(host, client)
        host.stop()
        self._cluster.gateways.lost(host)

    def _leave_behind(self, host: Host, client: object) -> None:
        """End a client's connections to the other gateways."""
        kept = {conn: other for conn, other in host.by_conn.items() if other is client}
        for conn in kept:
            del host.by_conn[conn]
        self._cluster.clients.disconnect(client)  # type: ignore[arg-type]
        host.by_conn.update(kept)  # they end with the gateway

    def kill_gateway(self, host: Host) -> None:
        """End a gateway's process."""
        cluster = self._cluster
        for client in list(host.by_conn.values()):
            client.awaiting = None  # who is elsewhere at home submits again there
            if client.host is host:
                self._leave_behind(host, client)
        host.end_gateway()
        cluster.gateways.lost(host)
        cluster.handle(host, GatewayLost())

    # ---- the coordinator -------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """Kill the coordinating daemon, and start the next one: its arena and the rows stay."""
        cluster, home = self._cluster, self._cluster.home
        self._stop(home)
        for host in cluster.others():
            if host.linked:
                self._cut(host)
        home.begin(coordinates=True, now=cluster.now)
        home.store.begin_again()
        engine = home.engine
        for event in self._resuming():
            cluster.handle(home, event)
            if home.engine is not engine:
                return  # it was killed again

    def _resuming(self) -> list[object]:
        """Return what a new daemon is told: what was left unsealed, jobs that were over, jobs that go on."""
        cluster, home = self._cluster, self._cluster.home
        orphans, unsealed = self._left_in(home)
        known = [job for job in cluster.jobs.values() if job.row is not None]
        for job in known:
            if job.committed >= job.config.job.rounds and not job.over:  # killed before it could say so
                job.row = ("finished", "")
        for number in orphans.keys() - {job.number for job in known if not job.over}:
            for key, *_ in orphans.pop(number):
                home.store.free(key)
        events: list[object] = [ev.ArenaAdopted({}, unsealed)]
        for job in known:
            if job.over and job.row is not None:
                events.append(ev.JobRecalled(job.facts, job.history(), *job.row))
        for job in known:
            if not job.over:
                found = orphans.get(job.number, ())
                # If not it goes on from an older one, and what is after that is not wanted any more.
                readable = job.spec.path_of(job.committed) not in cluster.disk.damaged
                if len(cluster.hosts) == 1 and readable:
                    _check_accepted(job, found)
                events.append(ev.JobResumed(job.facts, job.history(), found))
        return events

    @staticmethod
    def _left_in(host: Host) -> tuple[dict[int, tuple[ev.Orphan, ...]], tuple[Key, ...]]:
        """Return the sealed objects by job, and those that are not sealed."""
        found: dict[int, list[ev.Orphan]] = {}
        for key, thing in host.store.things.items():
            if thing.sealed:
                found.setdefault(thing.job, []).append((key, thing.kind, thing.epoch, list(thing.members)))
        unsealed = tuple(key for key, thing in host.store.things.items() if not thing.sealed)
        return {number: tuple(orphans) for number, orphans in found.items()}, unsealed


def _check_accepted(job: SimJob, orphans: tuple[ev.Orphan, ...]) -> None:
    """Look whether what was ACCEPTED is committed, or still there for its round."""
    here = {(member.client, round_of(epoch)) for _, _, epoch, members in orphans for member in members}
    for client in job.clients.values():
        for number in client.accepted:
            found = number <= job.committed or (client.name, number) in here
            must(found, "accepted-survives", f"{client.title}'s update of round {number} is gone with lifld")
