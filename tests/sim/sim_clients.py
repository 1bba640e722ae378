"""The trainers of the simulator: they connect, are selected, submit, hold what was accepted, hear what became of it.

A trainer is in one job.  It may write its update to the arena itself (*direct*), send metrics, decline a round or leave
because of it, read the model slowly or never to its end, and come back over another gateway than before.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from sim_checks import must

from lifl.core.config.job import EvaluationSection
from lifl.core.fields import Properties
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim_host import Host
    from sim_jobs import SimJob
    from simulator import Cluster

WANTS_MODEL = 0.5
DECLINES = 0.1
"""How many do not evaluate a model that they are asked to."""


class SimClient:
    """One trainer of one job."""

    def __init__(self, job: SimJob, index: int) -> None:
        self.job = job
        self.name = f"c{index}"
        self.direct = index % 2 == 0
        self.weight = 1.0 + index % 3
        self.metrics = {"loss": 0.25 * index} if index % 3 else {}
        self.pause_until = 0.0
        self.host: Host | None = None
        self.conn = 0
        self.asks: tuple[Host, int] | None = None  # the gateway and the connection of its last question
        self.wants_model = False
        self.away = False  # connected, but it takes no part
        self.evaluates = bool(index % 3) and isinstance(job.config.evaluation, EvaluationSection)
        self.evaluating: int | None = None  # the round whose model it is asked to evaluate
        self.told_of: int | None = None  # the round of which it has said something, and is not answered
        self.done = False  # it knows that the job is over
        self.held: set[int] = set()  # rounds whose updates it keeps: told ACCEPTED, and nothing since
        self.submitting: tuple[int, str] | None = None  # the round, and the gateway where to
        self.awaiting: int | None = None  # the round whose update is announced or sent, and not answered
        self.accepted: set[int] = set()  # of `held`, those that must not be lost

    @property
    def title(self) -> str:
        """What stands for it in an object's content."""
        return f"{self.job.name}/{self.name}"

    @property
    def waits_for_answer(self) -> bool:
        """True while its gateway takes nothing more from the connection: what it has asked is not answered."""
        return self.asks is not None and self.asks[1] in self.asks[0].questions

    def settled(self, number: int) -> None:
        """Let go of an update: it was counted, or the round ended without it."""
        self.accepted.discard(number)
        self.held.discard(number)

    def disconnected(self) -> None:
        """Begin anew: its connections are gone."""
        self.host, self.conn, self.submitting, self.awaiting, self.away = None, 0, None, None, False
        self.asks, self.wants_model = None, False
        self.evaluating = self.told_of = None


class Clients:
    """What trainers do, and what they are told."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def choices(self, found: list[Callable[[], Any]]) -> None:
        """Add what any trainer could do now."""
        now = self._cluster.now
        for job in self._cluster.jobs.values():
            if job.row is None:
                continue
            for client in job.clients.values():
                if client.done:
                    continue
                if client.host is None:
                    found.append(partial(self.connect, client))
                elif client.away:
                    found.append(partial(self._join, client))
                elif client.submitting is not None and not client.waits_for_answer and now >= client.pause_until:
                    found.append(partial(self.submit, client))
                elif client.evaluating is not None and not client.waits_for_answer:
                    found.append(partial(self.evaluate, client))

    def wake_times(self) -> list[float]:
        """Return when those that wait want to ask again."""
        clients = (client for job in self._cluster.jobs.values() for client in job.clients.values())
        return [client.pause_until for client in clients if client.host is not None and client.submitting is not None]

    def connect(self, client: SimClient) -> None:
        """Connect to some gateway, and join."""
        cluster = self._cluster
        up = [host for host in cluster.hosts.values() if host.engine is not None]
        client.disconnected()
        client.host, client.conn = cluster.rng.choice(up), cluster.new_conn()
        client.host.by_conn[client.conn] = client
        self._join(client)

    def _join(self, client: SimClient) -> None:
        client.away = False
        assert client.host is not None
        joined = gm.ClientJoined(client.conn, client.name, client.job.name, min(client.held, default=None), client.conn)
        if client.evaluates:
            joined = msgspec.structs.replace(joined, properties=Properties(evaluates=True))
        client.host.to_daemon.append(joined)

    def _decline(self, client: SimClient, number: int) -> None:
        """Take no part in a round; or, as an earlier version does, leave: it may come back over the same connection."""
        client.submitting = None
        assert client.host is not None
        if client.conn % 2:
            client.host.to_daemon.append(gm.ClientDeclined(client.conn, client.name, client.job.name, number))
            return
        client.away = True
        client.host.to_daemon.append(gm.ClientLeft(client.conn, client.job.name))

    def submit(self, client: SimClient) -> None:
        """Announce the update over its own connection, or (`gateway`) over a second one that is for this alone.

        Before that it may ask for the model.
        """
        cluster = self._cluster
        assert client.submitting is not None and client.host is not None
        number, gateway = client.submitting
        host, conn = client.host, client.conn
        other = next((each for each in cluster.hosts.values() if each.gateway == gateway and each.engine), host)
        if other is not host:
            host, conn = other, cluster.new_conn()
            host.by_conn[conn] = client
        client.asks = host, conn
        host.questions[conn] = client.job.name, number
        if client.wants_model:
            client.wants_model = False
            lend = cluster.lends and client.direct
            host.to_daemon.append(gm.WantModel(conn, client.job.name, number, lend=lend))
            return
        client.submitting, client.awaiting = None, number
        admit = gm.Admit(conn, client.name, client.job.name, number, client.weight, client.metrics, client.direct)
        host.to_daemon.append(admit)

    def evaluate(self, client: SimClient) -> None:
        """Tell what it has found of a model, for which it may ask first; or that it evaluates none."""
        assert client.evaluating is not None and client.host is not None
        number, at, rng = client.evaluating, (client.conn, client.name, client.job.name), self._cluster.rng
        if client.wants_model:
            client.wants_model = False
            client.asks = client.host, client.conn
            client.host.questions[client.conn] = client.job.name, number
            client.host.to_daemon.append(gm.WantModel(client.conn, client.job.name, number))
            return
        client.evaluating = None
        if rng.random() < DECLINES:
            client.host.to_daemon.append(gm.ClientDeclined(*at, number))
            return
        client.told_of = number
        client.host.to_daemon.append(gm.ClientEvaluated(*at, number, client.weight, {"loss": rng.random()}))

    def disconnect(self, client: SimClient) -> None:
        """End all its connections; a gateway gives up what was on its way over them."""
        for host in self._cluster.hosts.values():
            for conn in [conn for conn, other in host.by_conn.items() if other is client]:
                self.end(host, conn)
        client.disconnected()

    def end(self, host: Host, conn: int) -> None:
        """Let a gateway note that a connection has ended."""
        client = host.by_conn[conn]
        for key in [key for key, (its, _) in host.receiving.items() if its == conn]:
            del host.receiving[key]
            writing = client.direct and self._cluster.rng.random() < 0.5  # the gateway has had enough of it
            if writing:
                host.store.left_writing(key)
            host.to_daemon.append(gm.Aborted(conn, key.pack(), "disconnected", writing))
        for reader in [reader for reader in host.readers if reader.conn == conn]:
            host.readers.remove(reader)
            host.to_daemon.append(gm.ModelSent(conn, reader.key.pack(), 0))
        host.to_daemon.append(gm.ClientLeft(conn))
        host.questions.pop(conn, None)
        host.ended.discard(conn)
        del host.by_conn[conn]

    def vanish(self, client: SimClient) -> None:
        """Let it leave all its connections, which no gateway notices for a while: what is said there is lost."""
        for host in self._cluster.hosts.values():
            host.ended |= {conn for conn, other in host.by_conn.items() if other is client}
        client.disconnected()

    # ---- what they are told ----------------------------------------------------------------------------------------

    @staticmethod
    def _selected_since(client: SimClient, number: int) -> bool:
        """Return whether it was selected for a later round, which an answer about this one does not take back."""
        return client.submitting is not None and 0 <= number < client.submitting[0]

    def told(self, host: Host, client: SimClient, conn: int, message: Any) -> None:
        """Let a trainer hear a message over one of its connections."""
        if isinstance(message, cm.JobOver) and self._cluster.returns.acts and not client.job.over:
            # It came late, or from a host that coordinates no longer; the job goes on, and its user sees that.
            must(host is not self._cluster.home, "returns", f"{client.title} is told that its job is over, which runs")
            self.disconnect(client)
            return
        if isinstance(message, cm.JobOver):
            client.done, client.submitting, client.awaiting = True, None, None
            client.evaluating = client.told_of = None
            client.held.clear()
            return
        if isinstance(message, cm.Selected) and message.kind == "evaluate":
            client.evaluating, client.wants_model = message.round, self._cluster.rng.random() < WANTS_MODEL
            return
        if isinstance(message, cm.Accepted | cm.Refusal) and message.round == client.told_of:
            client.told_of = None
            return
        if isinstance(message, cm.Refusal) and message.code == cm.EVALUATION_OVER:
            client.evaluating = None if client.evaluating == message.round else client.evaluating
            return
        if not isinstance(message, cm.Selected) and message.round == client.awaiting:
            client.awaiting = None
        if isinstance(message, cm.Busy | cm.Refusal) and self._selected_since(client, message.round):
            return
        match message:
            case cm.Selected():
                client.submitting = (message.round, message.gateway)
                client.wants_model = self._cluster.rng.random() < WANTS_MODEL
                if client.awaiting is None and not client.waits_for_answer and self._cluster.faults.declines():
                    self._decline(client, message.round)
            case cm.Accepted():
                client.held.add(message.round)
                rounds = self._cluster.rounds_of(client.job)
                if any(r.number == message.round and client.name in r.accepted for r in rounds):
                    client.accepted.add(message.round)  # else it has expired, which is the next that it is told
                if not self._selected_since(client, message.round):
                    client.submitting = None
            case cm.Busy():
                client.submitting = (message.round, host.gateway)
                client.pause_until = self._cluster.now + message.retry_after_s
            case cm.Committed() | cm.RoundOver():
                if isinstance(message, cm.Committed) and message.counted and message.round in client.job.commits:
                    counted = client.job.commits[message.round][client.title] == 1
                    must(counted, "counted-once", f"{client.title} was told counted, and is not in the model")
                client.settled(message.round)
            case cm.Refusal("replaced"):
                self.disconnect(client)  # overtaken by its own past: it joins once more
            case cm.Refusal(code, field, _, _, number):
                if code == cm.USE_GATEWAY:
                    client.submitting = (number, field)
                elif number >= 0 and conn == client.conn:
                    client.submitting = None
                elif number >= 0:  # another node's gateway knows less than its own
                    client.submitting = (number, "")
