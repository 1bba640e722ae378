"""Daemons, machines and connections of the simulated cluster: how they end, and how they begin anew."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from sim_arena import SimStore
from sim_checks import must

from lifl.core import events as ev
from lifl.core.coordinator.job_queue import QUEUED
from lifl.core.ids import Key, Kind, round_of
from lifl.core.protocol.gateway import GatewayLost

if TYPE_CHECKING:
    from sim_host import Host
    from sim_jobs import SimJob
    from simulator import Cluster

SLOW_S = 0.5
FOR_COORDINATORS = (ev.FromNode, ev.NodeUp, ev.NodeSuspect, ev.NodeGone)
"""What comes over connections that a coordinator has."""


class Lives:
    """Ends and begins what runs on hosts."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    # ---- agents ----------------------------------------------------------------------------------------------------

    def link(self, host: Host) -> None:
        """Connect an agent to its coordinator, as the life that it was or as a new one."""
        cluster = self._cluster
        if not cluster.hears or cluster.asleep(host):
            return
        if host.engine is None:
            self._begin(host)
        elif host.buried:
            cluster.handle(host, ev.LifeEnded())
            host.incarnation += 1
        host.linked, host.buried, host.leader, host.beat = True, False, cluster.home, 0
        moved, host.term = host.term != cluster.term, cluster.term
        cluster.handle(cluster.home, host.up())
        if host.linked:  # else the coordinator died of it
            cluster.handle(host, ev.CoordinatorUp(stranger=False, moved=moved))

    def _begin(self, host: Host) -> None:
        """Start an agent's daemon on what is in its arena."""
        cluster = self._cluster
        host.begin(coordinates=False, now=cluster.now)
        host.incarnation += 1
        lent = self._lent_in(host)
        cluster.handle(host, ev.ArenaAdopted(*self._left_in(host), host.stored(), lent))

    def unlink(self, host: Host) -> None:
        """Break the connection: what was on its way on it is lost; what its gateway sends may come later."""
        if self._cluster.rng.random() < 0.3:
            host.frozen_until = self._cluster.now + SLOW_S
        self.cut(host)

    def cut(self, host: Host) -> None:
        """Let both sides note that a connection has ended."""
        leader = host.leader
        self._lose(host)
        engine = leader.engine if leader is not None else None
        if leader is not None and engine is not None and engine.coordinator is not None and not engine.writing:
            self._cluster.handle(leader, ev.NodeSuspect(host.number, True))

    def _lose(self, host: Host) -> None:
        host.linked, host.leader = False, None
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
        self._end(host, keep)
        cluster.handle(cluster.home, ev.NodeSuspect(host.number, True))

    def _end(self, host: Host, keep: bool) -> None:
        self._stop(host)
        for other in [other for other in self._cluster.hosts.values() if other.leader is host]:
            self._lose(other)
        if keep:
            host.store.begin_again(host.loans.keys())
        else:
            host.loans.clear()
            host.store = SimStore(host.arena_bytes, host.number)
            host.store.now = self._cluster.now

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
        for client in [client for conn, client in host.by_conn.items() if conn not in host.ended]:
            if client.host is not None and client.host is not host and client.awaiting is not None:
                client.submitting = client.awaiting, client.host.gateway  # who is elsewhere at home submits again there
            client.awaiting = None
            if client.host is host:
                self._leave_behind(host, client)
        host.end_gateway()
        cluster.gateways.lost(host)
        cluster.handle(host, GatewayLost())

    # ---- the coordinator -------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """Kill the coordinating daemon, and start the next one: its arena and the rows stay.

        Where the coordinator moves its machine may go, too, and another one go on.
        """
        cluster, home = self._cluster, self._cluster.home
        if cluster.moves:
            self._end(home, keep=cluster.rng.random() < 0.6)
            others = self.may_elect()
            if not others or cluster.rng.random() < 0.3:
                self._begin(home)
                others = [home]
            self.elect(cluster.rng.choice(others))
            return
        durable = all(job.config.job.durability == "disk" for job in cluster.jobs.values())
        self._end(home, keep=not durable or cluster.rng.random() < 0.5)  # else the power was off
        home.begin(coordinates=True, now=cluster.now)
        lent, (orphans, unsealed) = self._lent_in(home), self._left_in(home)
        running = {job.number for job in self._known() if not job.over}
        home.journal = {at: updates for at, updates in home.journal.items() if at[0] in running}
        stored = home.stored()
        self._tell(home, [ev.ArenaAdopted({}, unsealed, stored, lent), *self._resuming(orphans, stored)])

    def _tell(self, host: Host, events: list[object]) -> None:
        engine, term = host.engine, self._cluster.term
        for event in events:
            self._cluster.handle(host, event)
            if host.engine is not engine or term != self._cluster.term:
                return  # it was killed again, or coordinates no longer

    def may_elect(self) -> list[Host]:
        """Return the hosts that could coordinate in the place of the one that does."""
        cluster = self._cluster
        up = [host for host in cluster.others() if host.engine is not None and not host.inbox]
        alive = [host for host in up if not host.leaving and not cluster.asleep(host)]
        return [host for host in alive if host.engine.coordinator is None]  # type: ignore[union-attr]

    def depose(self) -> None:
        """Let another host coordinate, if there is one; the one that did has yet to notice, and so have some agents."""
        others = self.may_elect()
        if others:
            self.elect(self._cluster.rng.choice(others))

    def elect(self, host: Host) -> None:
        """Let a host coordinate from now on."""
        cluster = self._cluster
        host.linked, host.leader = False, None
        host.orders.clear()
        host.reports.clear()
        cluster.home, cluster.term = host, cluster.term + 1
        for other in cluster.hosts.values():
            other.buried = False  # who was so is not known any more
        running = tuple(job.number for job in self._known() if not job.over)
        self._tell(host, [ev.Promoted(cluster.term, b"seed", running), *self._resuming({})])
        for other in cluster.others():
            if other.linked and other.leader is not cluster.home and cluster.rng.random() < 0.7:
                self.cut(other)

    def demote(self, host: Host) -> None:
        """Let a host notice that it coordinates no longer."""
        for other in [other for other in self._cluster.hosts.values() if other.leader is host]:
            self._lose(other)
        host.inbox = deque(event for event in host.inbox if not isinstance(event, FOR_COORDINATORS))
        self._cluster.handle(host, ev.Demoted())

    def settle(self, host: Host) -> None:
        """Do the next thing that leads to a host which is linked to its coordinator."""
        if host.engine is not None and host.engine.coordinator is not None:
            self.demote(host)
        elif host.linked:
            self.cut(host)
        else:
            self.link(host)

    def _known(self) -> list[SimJob]:
        """Return the jobs that have a row; one that was committed to its end, and not said to be finished, is."""
        known = [job for job in self._cluster.jobs.values() if job.row is not None]
        for job in known:
            if job.committed >= job.config.job.rounds and not job.over:  # killed before it could say so
                job.row = ("finished", "")
        return known

    def _resuming(
        self, orphans: dict[int, tuple[ev.Orphan, ...]], stored: dict[int, Any] | None = None
    ) -> list[object]:
        """Return what a new daemon, or coordinator, is told: jobs that were over, jobs that go on."""
        cluster, home = self._cluster, self._cluster.home
        known = self._known()
        for number in orphans.keys() - {job.number for job in known if not job.over}:
            for key, *_ in orphans.pop(number):
                home.store.free(key)
        events: list[object] = []
        for job in known:
            if job.over and job.row is not None:
                events.append(ev.JobRecalled(job.facts, job.history(), *job.row))
        for job in sorted(known, key=lambda job: (QUEUED in (job.row or ("", ""))[1].split(), -job.config.priority)):
            if not job.over:
                found = orphans.get(job.number, ())
                # If not it goes on from an older one, and what is after that is not wanted any more.
                readable = job.spec.path_of(job.committed) not in cluster.disk.damaged
                if len(cluster.hosts) == 1 and readable:
                    _check_accepted(job, found, (stored or {}).get(job.number, ()))
                events.append(ev.JobResumed(job.facts, job.history(), found, job.row[1] if job.row else ""))
        return events

    @staticmethod
    def _lent_in(host: Host) -> tuple[Key, ...]:
        """Return the models that clients have mapped since an earlier life; those given back meanwhile are freed."""
        store = host.store
        for key in [key for key, thing in store.things.items() if thing.kind is Kind.MODEL and key not in host.loans]:
            store.free(key)
        host.lent_before = set(host.loans)
        return tuple(host.loans)

    @staticmethod
    def _left_in(host: Host) -> tuple[dict[int, tuple[ev.Orphan, ...]], tuple[Key, ...]]:
        """Return the sealed objects by job, and those that are not sealed."""
        found: dict[int, list[ev.Orphan]] = {}
        for key, thing in host.store.things.items():
            if thing.sealed and key not in host.loans:
                found.setdefault(thing.job, []).append((key, thing.kind, thing.epoch, list(thing.members)))
        unsealed = tuple(key for key, thing in host.store.things.items() if not thing.sealed)
        return {number: tuple(orphans) for number, orphans in found.items()}, unsealed


def _check_accepted(job: SimJob, orphans: tuple[ev.Orphan, ...], stored: Any) -> None:
    """Look whether what was ACCEPTED is committed, or still there for its round."""
    here = {(each.client, round_of(epoch)) for epoch, journal in stored for each in journal}
    here |= {(member.client, round_of(epoch)) for _, _, epoch, members in orphans for member in members}
    for client in job.clients.values():
        for number in client.accepted:
            found = number <= job.committed or (client.name, number) in here
            must(found, "accepted-survives", f"{client.title}'s update of round {number} is gone with lifld")
