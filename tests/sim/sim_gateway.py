"""The gateways of the simulator: updates and partials come in, models and partials go out.

A connection with a negative number is another node's transfer.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from sim_checks import must
from sim_host import Host, Reader

from lifl.core.agent.model_service import LOAN
from lifl.core.ids import Key, Kind
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution, unpack_contributions
from lifl.core.protocol.small_models import ModelChanged

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator import Cluster

MEMBER_BYTES = 1024


class Gateways:
    """The gateway of each host."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._offers: dict[int, tuple[Counter[str], list[Contribution]]] = {}  # by connection: what it would send
        self.waiting: dict[int, tuple[Host, Key]] = {}  # by connection: who waits for the end of a transfer, of what

    # ---- what lifld says to it -------------------------------------------------------------------------------------

    def effect(self, host: Host, effect: Any) -> None:
        """Do what the daemon wants."""
        match effect:
            case gm.TellClient(conn, raw):
                message = cm.unpacked(raw)
                self._answered(host, conn, message)
                client = host.by_conn.get(conn) if conn not in host.ended else None
                if client is not None:
                    self._cluster.clients.told(host, client, conn, message)
                elif conn < 0:
                    self._transfer_answered(conn, message)
            case gm.Granted(conn, packed, member):
                self._granted(host, conn, Key.unpack(packed), member)
            case gm.FollowUpdate(conn, packed):
                waits = Key.unpack(packed) in host.receiving
                assert conn in host.by_conn or not waits, "nobody sends that update"
                for received_bytes in range(1, 1 + self._cluster.rng.randrange(3)):
                    host.to_daemon.append(gm.Progress(packed, received_bytes))
            case gm.ModelGranted(conn, lent=True):
                host.questions.pop(conn, None)
                host.loans[Key.unpack(effect.key)] += 1
            case gm.ModelGranted(conn, job, _round, packed):
                host.questions.pop(conn, None)
                if conn in host.by_conn:  # from a copy of it the gateway serves others, until it is told
                    must(host.copied.setdefault(job, packed) == packed, "copied", f"a model of {job} is another one")
                if conn in host.by_conn or conn in self.waiting:
                    stuck = conn > 0 and self._cluster.faults.sticks()
                    host.readers.append(Reader(conn, Key.unpack(packed), stuck))
                else:
                    host.to_daemon.append(gm.ModelSent(conn, packed, 0))
            case gm.Carry() | gm.Fetch():
                # A later one of the same key takes the place of the earlier.
                host.transfers = [each for each in host.transfers if each.key != effect.key]
                host.transfers.append(effect)
            case ModelChanged(job) | gm.JobForget(job):
                host.copied.pop(job, None)
            case gm.EndFetch(packed):
                self._end_fetch(host, packed)
            case gm.HangUp(conn, after_updates):
                busy = {title for _, title in host.receiving.values()} if after_updates else ()
                for at, client in [each for each in host.by_conn.items() if conn in (0, each[0])]:
                    if client.title not in busy and not (after_updates and at in host.questions):
                        if at in host.ended:
                            self._cluster.clients.end(host, at)
                        else:
                            self._cluster.clients.disconnect(client)

    @staticmethod
    def _answered(host: Host, conn: int, message: Any) -> None:
        """End the question of a connection, as `node/gateway/grant_waiter.py` does."""
        answers = isinstance(message, cm.Accepted | cm.Busy | cm.Refusal)
        if answers and host.questions.get(conn) == (message.job, message.round):
            del host.questions[conn]

    def _granted(self, host: Host, conn: int, key: Key, member: bytes) -> None:
        host.questions.pop(conn, None)
        if conn in host.by_conn:
            thing = host.store.things[key]
            thing.members = unpack_contributions(member)
            host.receiving[key] = (conn, host.by_conn[conn].title)
        elif conn in self._offers:
            host.receiving[key] = (conn, "")
        else:
            host.to_daemon.append(gm.Aborted(conn, key.pack(), "gone"))

    # ---- what it does ----------------------------------------------------------------------------------------------

    def choices(self, host: Host, found: list[Callable[[], Any]]) -> None:
        """Add what the gateway of a host could do, or say, now, and who may give a model back."""
        if host.loans and not (self._cluster.keeps_loans and self._goes_on()):
            found += [partial(self.give_back, host, key) for key in host.loans]
        if host.gateway_killed:
            found.append(partial(self._cluster.lives.kill_gateway, host))
            return
        if host.frozen_until > self._cluster.now:
            return
        if host.to_daemon:
            found.append(partial(self.say, host))
        if host.ended:
            found += [partial(self._cluster.clients.end, host, conn) for conn in host.ended]
        if host.receiving:
            found += [partial(self.received, host, key) for key in host.receiving]
        if host.readers:
            found += [partial(self.sent, host, reader) for reader in host.readers if not reader.stuck]
        if host.transfers:
            found += [partial(self.transfer, host, each) for each in host.transfers]

    def say(self, host: Host) -> None:
        """Say the next message to the daemon."""
        self._cluster.handle(host, host.to_daemon.popleft())

    def received(self, host: Host, key: Key) -> None:
        """Have all of an update, or of another node's partial."""
        conn, title = host.receiving.pop(key)
        thing = host.store.things[key]
        if conn < 0:
            thing.sealed = True
            thing.content, thing.members = self._offers.pop(conn)
        elif self._cluster.faults.bad_content():
            host.by_conn[conn].awaiting = None  # the gateway tells it
            host.to_daemon.append(gm.Aborted(conn, key.pack(), "bad content"))
            return
        else:
            thing.sealed, thing.content = True, Counter([title])
        host.to_daemon.append(gm.Sealed(conn, key.pack(), 1))

    def sent(self, host: Host, reader: Reader) -> None:
        """Have sent all of a model."""
        host.readers.remove(reader)
        thing = host.store.things.get(reader.key)
        must(thing is not None, "freed-never-read", f"model {reader.key} is sent over {reader.conn}")
        must(thing.sealed, "sealed-first", f"model {reader.key} is sent over {reader.conn}")
        if reader.conn < 0:
            other, key = self.waiting.pop(reader.conn, (None, None))
            if other is not None and other.engine is not None and key in other.store.things:
                copy = other.store.things[key]
                copy.sealed, copy.content = True, Counter(thing.content)
                other.to_daemon.append(gm.FetchEnded(key.pack(), "", 1))
        host.to_daemon.append(gm.ModelSent(reader.conn, reader.key.pack(), 1))

    def _goes_on(self) -> bool:
        """Return whether anything may come of waiting for longer: not if all jobs stand in line for what is lent."""
        engine = self._cluster.home.engine
        coordinator = engine.coordinator if engine is not None else None
        quiet = self._cluster.faults.is_quiet
        return not quiet or coordinator is None or not all(job.queued for job in coordinator.running.values())

    def give_back(self, host: Host, key: Key) -> None:
        """Let the last array over a model that is lent go: its bytes were its own until now."""
        thing = host.store.things.get(key)
        must(thing is not None and thing.sealed, "freed-never-read", f"model {key} is lent")
        host.loans -= Counter((key,))
        if host.engine is not None and not (key in host.lent_before and host.loans[key]):
            host.lent_before.discard(key)
            self._cluster.handle(host, gm.ModelSent(LOAN, key.pack(), 0))

    def loans(self) -> list[tuple[Host, Key]]:
        """Return what clients have mapped."""
        return [(host, key) for host in self._cluster.hosts.values() for key in host.loans]

    # ---- between gateways ------------------------------------------------------------------------------------------

    def transfer(self, host: Host, effect: gm.Carry | gm.Fetch) -> None:
        """Ask another node's gateway for room for a partial, or for a model."""
        cluster = self._cluster
        host.transfers.remove(effect)
        key = Key.unpack(effect.key)
        other = next((h for h in cluster.hosts.values() if h.gateway == effect.address and h.engine), None)
        lost = other is None or cluster.faults.loses()
        thing = host.store.things.get(key)
        if isinstance(effect, gm.Fetch):
            if lost:
                host.to_daemon.append(gm.FetchEnded(effect.key, "lost", 0))
                return
            conn = -cluster.new_conn()
            other.to_daemon.append(gm.WantModel(conn, effect.job, effect.round, effect.part))
        elif lost or thing is None:
            host.to_daemon.append(gm.CarryEnded(effect.key, "lost", 0))
            return
        else:
            must(thing.sealed, "sealed-first", f"partial {key} is carried")
            conn = -cluster.new_conn()
            self._offers[conn] = (Counter(thing.content), list(thing.members))
            members = len(thing.members)
            data_bytes = cluster.by_number[effect.number].layout.accumulator_bytes
            at = (conn, effect.number, effect.epoch, effect.branch, members)
            other.to_daemon.append(gm.Offered(*at, data_bytes, members * MEMBER_BYTES, effect.secret))
        self.waiting[conn] = (host, key)

    def forget(self, host: Host) -> None:
        """Lose what a daemon has had brought or fetched by a gateway that was gone already: it had been asleep."""
        host.transfers.clear()
        for conn in [conn for conn, (asks, _) in self.waiting.items() if asks is host]:
            del self.waiting[conn]

    def _end_fetch(self, host: Host, packed: bytes) -> None:
        """End a fetch that is not asked for yet, or not answered; of another it has been said that it ended."""
        asked = [conn for conn, waits in self.waiting.items() if waits == (host, Key.unpack(packed))]
        queued = [each for each in host.transfers if each.key == packed]
        host.transfers = [each for each in host.transfers if each.key != packed]
        for conn in asked:
            del self.waiting[conn]
        if asked or queued:
            host.to_daemon.append(gm.FetchEnded(packed, "ended", 0))

    def _transfer_answered(self, conn: int, message: Any) -> None:
        host, key = self.waiting.pop(conn, (None, None))
        self._offers.pop(conn, None)
        if host is None or host.engine is None or key not in host.store.things:
            return
        if host.store.things[key].kind is Kind.PARTIAL:
            heard = isinstance(message, cm.Accepted) and not self._cluster.faults.loses()
            error = "" if heard else "lost"
            host.to_daemon.append(gm.CarryEnded(key.pack(), error, 1))
        else:
            host.to_daemon.append(gm.FetchEnded(key.pack(), "refused", 0))

    def lost(self, gone: Host) -> None:
        """End the transfers with a gateway that is gone; the other side hears of it."""
        for conn, (host, _) in list(self.waiting.items()):
            if host is gone:
                del self.waiting[conn]
            else:
                self._transfer_answered(conn, None)
        for host in self._cluster.hosts.values():
            for key, (conn, _) in list(host.receiving.items()):
                if conn < 0:
                    del host.receiving[key]
                    host.to_daemon.append(gm.Aborted(conn, key.pack(), "gone"))
            for reader in [reader for reader in host.readers if reader.conn < 0]:
                host.readers.remove(reader)
                host.to_daemon.append(gm.ModelSent(reader.conn, reader.key.pack(), 0))
