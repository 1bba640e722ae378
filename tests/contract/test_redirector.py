"""One contract for both redirectors, with real processes as workers.

A worker is a fork of the test that opens its port and then does what the test tells it over a socket pair: send so
many records, receive so many, die.  The daemon is the test's process, or one more fork where the daemon must die.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import msgpack
import pytest

from lifl.core.errors import LocalFault, RemoteFault, ResourceFault
from lifl.core.ids import ADDRESSES_MAX, SLOTS_MAX, Key, Record, pack_records
from lifl.redirect import is_wake, open_port, open_redirector
from lifl.redirect.sockmap import bpf as bpf_calls
from lifl.redirect.sockmap import loader
from lifl.redirect.sockmap import port as port_module
from lifl.redirect.tables import HELD, SLOT_WORDS

TIMEOUT_S = 120.0


def rec(address, number, sender=0):
    return Record(address, Key(number & 0xFFFF_FFFF, 1, 7), sender=sender)


# ---- the workers' side: runs in the fork ------------------------------------------------------------------------


def wait_readable(fd, timeout_s=TIMEOUT_S):
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(timeout_s * 1e3), "nothing came"


def worker_main(control, port):
    """Obeys (command, arguments) frames of msgpack until the control socket ends."""
    while True:
        order = control.recv(65_536)
        if not order:
            return
        command, *arguments = msgpack.unpackb(order)
        if command == "send":  # address, first number, count, sender, records per send
            address, first, count, sender, per_send = arguments
            for start in range(first, first + count, per_send):
                end = min(start + per_send, first + count)
                port.send([rec(address, number, sender) for number in range(start, end)])
            answer = count
        elif command == "fan":  # addresses, records for each, sender; in turns, 64 per send
            addresses, each, sender = arguments
            for start in range(0, each, 64):
                for address in addresses:
                    port.send([rec(address, number, sender) for number in range(start, min(start + 64, each))])
            answer = each * len(addresses)
        elif command == "receive":  # exactly so many; answers (sender, number) of each
            got = []
            while len(got) < arguments[0]:
                wait_readable(port.fileno())
                got += [(r.sender, r.key.slot) for r in port.receive()]
            answer = got
        elif command == "tally":  # until the orders end: how many, doubles and disorder per sender
            answer = tally(port, control)
        elif command == "eof":
            wait_readable(port.fileno())
            try:
                while True:
                    port.receive()
                    wait_readable(port.fileno())
            except EOFError as error:
                answer = str(error)
        control.sendall(msgpack.packb(answer))


def tally(port, control):
    """Receives until the control socket says stop; (sender, count, in order from 0) of each."""
    expected, ordered = defaultdict(int), defaultdict(lambda: True)
    poll = select.poll()
    poll.register(port.fileno(), select.POLLIN)
    poll.register(control.fileno(), select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if port.fileno() in ready:
            for record in port.receive():
                if record.key.slot != expected[record.sender]:
                    ordered[record.sender] = False
                expected[record.sender] += 1
        elif control.fileno() in ready:
            control.recv(65_536)
            return [(sender, count, ordered[sender]) for sender, count in expected.items()]


class Worker:
    """A registered worker process."""

    def __init__(self, redirector):
        self.registration = redirector.register()
        self.slot = self.registration.slot
        port = msgpack.unpackb(msgpack.packb(self.registration.port))
        descriptors = list(self.registration.descriptors)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(TIMEOUT_S)
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                signal.alarm(3 * int(TIMEOUT_S))
                for fd in fds() - {*descriptors, theirs.fileno(), 0, 1, 2}:
                    os.close(fd)
                theirs.sendall(msgpack.packb("closed what is not ours"))
                worker_main(theirs, open_port(port, descriptors))
                code = 0
            finally:
                if code:
                    traceback.print_exc()
                os._exit(code)
        theirs.close()
        self.registration.handed_over()
        self.answer()

    def order(self, *order):
        self.control.sendall(msgpack.packb(order))

    def answer(self):
        answer = self.control.recv(8 << 20)
        assert answer, "the worker ended"
        return msgpack.unpackb(answer, use_list=False)

    def ask(self, *order):
        self.order(*order)
        return self.answer()

    def has_answered(self):
        return bool(select.select([self.control], [], [], 0)[0])

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self):
        if self.pid:
            os.waitpid(self.pid, 0)
            self.pid = 0
            self.control.close()


# ---- the daemon's side ------------------------------------------------------------------------------------------


class Node:
    """A daemon in miniature: watches the fallback descriptors, holds what cannot be delivered, delivers it later."""

    def __init__(self, redirector):
        self.redirector = redirector
        self.watched, self.held, self.fallen, self.ended, self.workers = set(), [], [], [], []
        redirector.on_fallback(self.watched.add, self.watched.remove)

    def worker(self, *addresses):
        worker = Worker(self.redirector)
        self.workers.append(worker)
        for address in addresses:
            self.redirector.route(address, worker.slot)
        return worker

    def turn(self, timeout_s=0.0):
        """One turn of an event loop; returns how many records and ends it saw."""
        assert set(self.redirector.fallback_fds()) == self.watched
        seen = 0
        for fd in select.select(list(self.watched), [], [], timeout_s)[0]:
            slot = self.redirector.slot_of(fd)
            try:
                records = self.redirector.receive(fd)
            except (EOFError, RemoteFault) as end:
                self.ended.append((slot, type(end)))
                self.redirector.retire(slot)
                seen += 1
                continue
            seen += len(records)
            self.fallen += [r for r in records if not is_wake(r)]
            self.held += [r for r in records if r.address]
            self.held = self.redirector.send(self.held)
        return seen

    def until(self, condition):
        """Turns the loop until the condition holds; it sleeps in between, so a missing wake is a failure."""
        end_s = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < end_s, "it did not happen"
            self.turn(0.05 if any(worker.has_answered() for worker in self.workers if worker.pid) else 0.2)

    def close(self):
        for worker in self.workers:
            if worker.pid:
                worker.kill()
        self.redirector.close()


_fault: list[str | None] = []


def sockmap_fault():
    """Why the sockmap cannot run here, found out once by opening it."""
    if not _fault:
        try:
            open_redirector("sockmap", Path("/nonexistent")).close()
            _fault.append(None)
        except ResourceFault as fault:
            _fault.append(str(fault))
    return _fault[0]


@pytest.fixture(params=["sockmap", "unix"])
def kind(request):
    if request.param == "sockmap" and (fault := sockmap_fault()):
        pytest.skip(f"NOT TESTED, the sockmap cannot run on this machine: {fault}")
    return request.param


@pytest.fixture
def node(kind, tmp_path):
    node = Node(open_redirector(kind, tmp_path))
    yield node
    node.close()


# ---- routing ----------------------------------------------------------------------------------------------------


def test_says_what_it_is(node, kind):
    assert node.redirector.name == kind
    assert "redirector" in node.redirector.why


def test_routes_worker_to_worker_and_counts(node):
    one, other = node.worker(), node.worker(5, 6)
    before_ns = time.monotonic_ns()
    one.ask("send", 5, 0, 100, 11, 64)
    one.ask("send", 6, 100, 3, 11, 1)
    assert other.ask("receive", 103) == tuple((11, number) for number in range(103))
    counters = node.redirector.counters(other.slot)
    assert (counters.messages, counters.bytes, counters.consumed, counters.over) == (103, 103 * 64, 103, 0)
    assert before_ns < counters.last_ns < time.monotonic_ns()
    assert node.redirector.counters(one.slot).messages == 0
    assert node.redirector.totals() == (5, 0, 0, 0, 0)
    assert not node.turn()


def test_worker_sends_to_itself(node):
    worker = node.worker(5)
    worker.ask("send", 5, 0, 3, 1, 1)
    assert worker.ask("receive", 3) == ((1, 0), (1, 1), (1, 2))


def test_daemon_sends_in_order_and_gets_back_what_has_no_route(node):
    worker = node.worker(5)
    mixed = [rec(5, n) for n in range(70)] + [rec(9, 70)] + [rec(5, n) for n in range(71, 75)]
    assert node.redirector.send(mixed) == [rec(9, 70)]
    assert [n for _, n in worker.ask("receive", 74)] == [n for n in range(75) if n != 70]
    assert node.redirector.counters(worker.slot).messages == 74


def test_address_zero_and_unknown_addresses_come_to_the_daemon(node):
    worker = node.worker()
    worker.ask("send", 0, 0, 2, 1, 2)
    worker.ask("send", 77, 2, 65, 1, 64)
    node.until(lambda: len(node.fallen) == 67)
    assert [r.key.slot for r in node.fallen] == list(range(67))
    assert [r.address for r in node.fallen] == [0, 0] + [77] * 65
    assert node.redirector.totals().unknown == 2
    node.redirector.route(77, worker.slot)  # the route appears, what was held can go
    assert node.redirector.send(node.held) == []
    assert [n for _, n in worker.ask("receive", 65)] == list(range(2, 67))


def test_route_can_be_cleared(node):
    one, other = node.worker(), node.worker(5)
    node.redirector.route(5, None)
    one.ask("send", 5, 0, 1, 1, 1)
    node.until(lambda: len(node.fallen) == 1)
    assert node.redirector.send([rec(5, 0)]) == [rec(5, 0)]
    assert node.redirector.counters(other.slot).messages == 0


# ---- death ------------------------------------------------------------------------------------------------------


def test_receiver_killed_mid_stream(node):
    """The sender goes on, its records bounce to the daemon, and what the dead one had not read can be counted."""
    sender, receiver = node.worker(), node.worker(5)
    total = 20_000
    sender.order("send", 5, 0, total, 1, 64)
    receiver.ask("receive", 2_000)
    receiver.kill()
    node.until(sender.has_answered)
    assert sender.answer() == total
    node.until(lambda: not node.turn() and (receiver.slot, EOFError) in node.ended)
    counters = node.redirector.counters(receiver.slot)
    held = {r.key.slot for r in node.held}
    assert held
    assert total <= counters.messages + len(held), "each is delivered or held (tries at a dying one count twice)"
    assert counters.messages >= counters.consumed >= 2_000
    # What the daemon sends on to one that is just dying falls a second time; it was not held in between.
    assert len(node.held) == len(held), "none is held twice"
    assert {r.key.slot for r in node.fallen} == held, "all that fell is held"
    assert sender.ask("send", 0, 1, 1, 1, 1) == 1


def test_death_of_an_idle_worker_is_an_end_of_file(node):
    worker = node.worker(5)
    worker.kill()
    node.until(lambda: node.ended == [(worker.slot, EOFError)])
    assert node.redirector.send([rec(5, 1)]) == [rec(5, 1)]


def test_reregistration_with_route_switch(node):
    """What the old one has not read stays its own; what is sent after the switch goes to the new one."""
    sender, old = node.worker(), node.worker(5)
    sender.ask("send", 5, 0, 10, 1, 5)
    new = node.worker(5)
    assert new.slot != old.slot
    sender.ask("send", 5, 10, 10, 1, 5)
    assert [n for _, n in old.ask("receive", 10)] == list(range(10))
    assert [n for _, n in new.ask("receive", 10)] == list(range(10, 20))


def test_stale_slot_is_not_reachable(node):
    """A retired worker that still runs gets nothing more, reaches nobody, and hears the end."""
    sender, retired = node.worker(), node.worker(5)
    node.redirector.retire(retired.slot)
    sender.ask("send", 5, 0, 1, 1, 1)
    node.until(lambda: len(node.fallen) == 1)
    fresh = node.worker(5)
    assert fresh.slot != retired.slot, "a slot rests before it is used again"
    sender.ask("send", 5, 1, 1, 1, 1)
    assert fresh.ask("receive", 1) == ((1, 1),)
    assert "daemon" in retired.ask("eof")
    with pytest.raises(LocalFault):
        node.redirector.route(5, retired.slot)
    with pytest.raises(LocalFault):
        node.redirector.retire(retired.slot)


def test_retired_port_cannot_send(node):
    registration = node.redirector.register()
    port = open_port(registration.port, [os.dup(fd) for fd in registration.descriptors])
    registration.handed_over()
    other = node.worker(5)
    node.redirector.retire(registration.slot)
    with pytest.raises(EOFError):
        port.send([rec(5, 1)])
    port.close()
    assert node.redirector.counters(other.slot).messages == 0


def test_daemon_death_is_an_end_of_file_for_workers(kind, tmp_path):
    """The daemon is a process of its own here; it registers two workers and is killed."""
    ours, theirs = socket.socketpair()
    daemon = os.fork()
    if daemon == 0:
        try:
            signal.alarm(int(TIMEOUT_S))
            ours.close()
            redirector = open_redirector(kind, tmp_path)
            for _ in range(2):
                registration = redirector.register()
                port = msgpack.packb(registration.port).ljust(256, b"\xc1")
                socket.send_fds(theirs, [port], registration.descriptors)
                registration.handed_over()
            signal.pause()
        finally:
            os._exit(1)
    theirs.close()
    ours.settimeout(TIMEOUT_S)
    ports = []
    for _ in range(2):
        data, descriptors, _, _ = socket.recv_fds(ours, 256, 8)
        ports.append(open_port(msgpack.unpackb(data.rstrip(b"\xc1")), descriptors))
    assert [port.receive() for port in ports] == [[], []]
    os.kill(daemon, signal.SIGKILL)
    os.waitpid(daemon, 0)
    ours.close()
    for port in ports:
        wait_readable(port.fileno())
        with pytest.raises(EOFError):
            port.receive()
        port.close()
    open_redirector(kind, tmp_path).close()  # what the dead one left is no obstacle
    if kind == "unix":
        assert not list(tmp_path.iterdir())


# ---- a full receiver --------------------------------------------------------------------------------------------


def test_full_receiver_blocks_nobody_else_and_loses_nothing(node):
    """It does not read; its sender ends up with the daemon; others are served; the wake brings what was held."""
    sender, full, other = node.worker(), node.worker(5), node.worker(6)
    total = 12_000
    sender.order("send", 5, 0, total, 1, 64)
    bystander = node.worker()
    for n in range(10):
        assert bystander.ask("send", 6, n, 1, 2, 1) == 1
        assert other.ask("receive", 1) == ((2, n),)
    node.until(sender.has_answered)
    sender.answer()
    node.until(lambda: not node.turn())
    assert node.held, "the daemon holds what the receiver has no room for"
    counters = node.redirector.counters(full.slot)
    assert counters.over > 0
    assert node.redirector.totals().over > 0
    assert sender.ask("send", 6, 100, 1, 1, 1) == 1, "the sender itself is not stuck either"
    assert other.ask("receive", 1) == ((1, 100),)
    full.order("receive", total)
    node.until(full.has_answered)
    assert sorted(n for _, n in full.answer()) == list(range(total))
    assert not node.held
    assert node.redirector.counters(full.slot).messages == node.redirector.counters(full.slot).consumed == total


def test_daemon_is_told_when_a_full_receiver_has_room(node):
    """The daemon fills the receiver, and sends the rest only when a wake for that slot comes."""
    worker = node.worker(5)
    records = [rec(5, n) for n in range(30_000)]
    left = node.redirector.send(records)
    assert 0 < len(left) < len(records)
    assert left == records[-len(left) :]
    node.held = left
    worker.order("receive", len(records))
    node.until(worker.has_answered)
    assert [n for _, n in worker.answer()] == list(range(len(records))), "held ones keep their order"


@pytest.mark.parametrize("sends", [15, 16, 17])
def test_a_wake_comes_however_many_sends_were_read_at_once(node, sends):
    """The receiver empties its socket with the last read of a call: it still tells the daemon of the room."""
    worker = node.worker(5)
    first = [rec(5, n) for n in range(64 * sends)]
    assert not node.redirector.send(first)
    row = worker.slot * SLOT_WORDS
    node.redirector._slots.words[row + HELD] = 1  # as if one more had found no room
    node.held = [rec(5, len(first))]
    assert len(worker.ask("receive", len(first))) == len(first)
    worker.order("receive", 1)
    node.until(worker.has_answered)
    assert worker.answer() == ((0, len(first)),)


# ---- many -------------------------------------------------------------------------------------------------------


def test_a_million_records_none_lost_doubled_or_reordered(node, monkeypatch):
    # However long a receiver waits for a core, who sends to it waits: nothing goes to the daemon instead.
    monkeypatch.setattr(port_module, "PATIENCE_S", TIMEOUT_S)
    receivers = [node.worker(10 + n) for n in range(3)]
    senders = [node.worker() for _ in range(4)]
    each = 83_333
    for receiver in receivers:
        receiver.order("tally")
    for number, sender in enumerate(senders):
        sender.order("fan", [10, 11, 12], each, number + 1)
    for sender in senders:
        node.until(sender.has_answered)
        assert sender.answer() == 3 * each

    def consumed():
        return [node.redirector.counters(r.slot).consumed for r in receivers] == [4 * each] * 3

    node.until(consumed)
    for receiver in receivers:
        receiver.order("stop")
        assert sorted(receiver.answer()) == [(sender, each, True) for sender in (1, 2, 3, 4)]
    assert not node.fallen
    totals = node.redirector.totals()
    assert (totals.unknown, totals.dead, totals.over, totals.malformed) == (0, 0, 0, 0)


# ---- bad input and limits ---------------------------------------------------------------------------------------


def raw_end(node):
    """A worker whose socket the test writes to by hand."""
    registration = node.redirector.register()
    end = socket.socket(fileno=os.dup(registration.descriptors[0]))
    registration.handed_over()
    return registration.slot, end


def test_send_whose_header_lies_is_counted_and_comes_to_the_daemon(node):
    slot, end = raw_end(node)
    other = node.worker(5)
    record = bytearray(pack_records([rec(5, 1)]))
    record[2] = 9  # "nine records follow"
    with end:
        end.send(bytes(record))
        node.until(lambda: len(node.fallen) == 1)
    assert node.redirector.totals().malformed == 1
    assert other.ask("receive", 1) == ((0, 1),), "forwarded by the daemon as the one record that it is"
    assert slot != other.slot


@pytest.mark.parametrize("garbage", [b"\x00" * 64, b"GET / HTTP/1.1\r\n" * 300], ids=["zeros", "text"])
def test_garbage_ends_its_sender_only(node, garbage):
    slot, end = raw_end(node)
    good, other = node.worker(), node.worker(5)
    with end:
        end.send(pack_records([rec(0, 1), rec(0, 2)]))
        end.send(garbage)
        node.until(lambda: node.ended == [(slot, RemoteFault)])
    assert [r.key.slot for r in node.fallen] == [1, 2], "what came before is not lost"
    assert node.redirector.totals().malformed >= 1
    good.ask("send", 5, 0, 1, 1, 1)
    assert other.ask("receive", 1) == ((1, 0),)


def test_address_limits(node):
    worker = node.worker(1, ADDRESSES_MAX - 1)
    worker.ask("send", ADDRESSES_MAX - 1, 0, 1, 1, 1)
    assert worker.ask("receive", 1) == ((1, 0),)
    for address in (-1, 0, ADDRESSES_MAX):
        with pytest.raises(LocalFault):
            node.redirector.route(address, worker.slot)
    for address in (0, ADDRESSES_MAX):
        with pytest.raises(LocalFault):
            node.redirector.send([rec(address, 1)])
    registration = node.redirector.register()
    port = open_port(registration.port, [os.dup(fd) for fd in registration.descriptors])
    registration.handed_over()
    with pytest.raises(LocalFault, match=str(ADDRESSES_MAX)):
        port.send([rec(ADDRESSES_MAX, 1)])
    port.close()
    for slot in (0, SLOTS_MAX):
        with pytest.raises(LocalFault):
            node.redirector.route(3, slot)


def test_slot_limit_and_reuse(node):
    """All slots, then none; a retired one is free again under another generation, with counters at zero."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * SLOTS_MAX:
        pytest.skip(f"NOT TESTED, the limit of open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * SLOTS_MAX, hard))
    try:
        taken = [node.redirector.register() for _ in range(SLOTS_MAX - 1)]
        assert sorted(r.slot for r in taken) == list(range(1, SLOTS_MAX))
        with pytest.raises(ResourceFault, match="workers_max"):
            node.redirector.register()
        victim = taken[500]
        node.redirector.route(5, victim.slot)
        assert node.redirector.send([rec(5, 1)]) == []
        node.redirector.retire(victim.slot)
        again = node.redirector.register()
        assert again.slot == victim.slot
        assert again.generation != victim.generation
        assert node.redirector.counters(again.slot) == (0, 0, 0, 0, 0)
        assert node.redirector.send([rec(5, 1)]) == [rec(5, 1)], "the old route does not reach the new owner"
        for registration in [*taken, again]:
            if registration is not victim:
                node.redirector.retire(registration.slot)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_out_of_descriptors_is_a_clear_fault(node, spare):
    """At whichever descriptor it fails, nothing is left open, and the next registration works."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = fds()
    filler = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 4, hard))
    try:
        with suppress(OSError):
            while True:
                filler.append(os.dup(0))
        for _ in range(spare):
            os.close(filler.pop())
        with pytest.raises(ResourceFault, match="ulimit"):
            node.redirector.register()
    finally:
        for fd in filler:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert fds() == before
    node.worker(5)


# ---- nothing is left --------------------------------------------------------------------------------------------


def fds():
    return {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


PROGRAM_NEXT_ID, MAP_NEXT_ID = 11, 12


def bpf_ids(command):
    """The ids of all BPF programs or maps of this machine."""
    ids, last = set(), 0
    while True:
        try:
            last = struct.unpack_from("<I", bpf_calls.call(command, struct.pack("<II", last, 0)), 4)[0]
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EPERM):
                return ids
            raise
        ids.add(last)


def held_bpf_ids(field):
    """The ids of the BPF programs (prog_id) or maps (map_id) that this process has descriptors of."""
    lines = [line for fd in fds() for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()]
    return {int(line.split()[1]) for line in lines if line.startswith(f"{field}:")}


def test_close_leaves_nothing(kind, tmp_path):
    gc.collect()
    descriptors, programs, maps = fds(), held_bpf_ids("prog_id"), held_bpf_ids("map_id")
    node = Node(open_redirector(kind, tmp_path))
    one, other = node.worker(5), node.worker(6)
    one.ask("send", 6, 0, 5, 1, 5)
    other.ask("receive", 5)
    one.kill()
    node.until(lambda: len(node.ended) == 1)
    unfinished = node.redirector.register()  # never handed over
    programs, maps = held_bpf_ids("prog_id") - programs, held_bpf_ids("map_id") - maps
    assert (len(programs), len(maps)) == ((1, 4) if kind == "sockmap" else (0, 0))
    assert programs <= bpf_ids(PROGRAM_NEXT_ID) and maps <= bpf_ids(MAP_NEXT_ID)
    node.redirector.close()
    assert not node.watched
    assert "daemon" in other.ask("eof")
    other.control.close()
    os.waitpid(other.pid, 0)
    assert unfinished.slot
    assert fds() - {one.control.fileno()} == descriptors
    assert not list(tmp_path.iterdir())
    end_s = time.monotonic() + TIMEOUT_S
    while programs & bpf_ids(PROGRAM_NEXT_ID) or maps & bpf_ids(MAP_NEXT_ID):  # the kernel frees them a little later
        assert time.monotonic() < end_s
        select.select([], [], [], 0.01)


# ---- choosing ---------------------------------------------------------------------------------------------------


def test_import_is_light():
    code = "import sys, lifl.redirect; print([m for m in ('numpy', 'bcc', 'asyncio') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_unknown_redirector_is_refused(tmp_path):
    with pytest.raises(LocalFault, match="sockmap"):
        open_redirector("tcp", tmp_path)


def test_auto_takes_the_sockmap_if_it_can(tmp_path):
    redirector = open_redirector("auto", tmp_path)
    assert redirector.name == ("unix" if sockmap_fault() else "sockmap")
    redirector.close()


def open_with_capabilities(kept):
    """What `auto` says in a process whose children have only the capabilities of these numbers."""
    code = (
        "import ctypes, os, pathlib, tempfile\n"
        "from lifl.redirect import open_redirector\n"
        f"[ctypes.CDLL(None).prctl(24, number, 0, 0, 0) for number in range(64) if number not in {kept}]\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    redirector = open_redirector('auto', pathlib.Path(folder))\n"
        "    print(redirector.name, redirector.why)\n"
        "    redirector.close()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


CAP_NET_ADMIN, CAP_BPF = 12, 39
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED, needs root to give rights up")


@needs_root
@pytest.mark.parametrize("kept", [[], [CAP_NET_ADMIN], [CAP_BPF]])
def test_without_rights_auto_falls_back_and_says_how_to_get_them(kept):
    if sockmap_fault():
        pytest.skip(f"NOT TESTED, the sockmap cannot run on this machine: {sockmap_fault()}")
    out = open_with_capabilities(kept)
    assert out.startswith("unix ")
    assert "not permitted" in out
    for number, name in ((CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_BPF, "CAP_BPF")):
        assert (name in out.split("missing:")[1].split(")")[0]) == (number not in kept)


@needs_root
def test_two_capabilities_are_enough():
    if sockmap_fault():
        pytest.skip(f"NOT TESTED, the sockmap cannot run on this machine: {sockmap_fault()}")
    assert open_with_capabilities([CAP_NET_ADMIN, CAP_BPF]).startswith("sockmap ")


def test_each_failure_of_the_loader_says_what_to_do(tmp_path, monkeypatch):
    """Broken on purpose: no bcc, another package named bcc, a program that does not compile, a child that dies."""
    monkeypatch.setattr(loader, "SYSTEM_PYTHON", sys.executable)
    with pytest.raises(loader.LoadFault, match="apt-get install python3-bpfcc"):
        loader.load({})
    if fault := sockmap_fault():
        pytest.skip(f"NOT TESTED, the sockmap cannot run on this machine: {fault}")
    monkeypatch.undo()
    with pytest.raises(loader.LoadFault, match="did not compile") as compiling:
        loader.load({})  # the limits are undefined
    assert compiling.value.stage == "compile"
    assert "SLOTS_MAX" in compiling.value.details, "the compiler's words are kept"
    assert "error" not in str(compiling.value).split("(")[0]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(loader.LoadFault, match="/bin/false ended with 1"):
        loader.load({})


def test_unix_folder_may_have_a_long_path(tmp_path):
    """An AF_UNIX address has 108 bytes; the folder's path may have more."""
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    node = Node(open_redirector("unix", folder))
    try:
        one, other = node.worker(), node.worker(5)
        one.ask("send", 5, 0, 1, 1, 1)
        assert other.ask("receive", 1) == ((1, 0),)
        assert (folder / "redirect").stat().st_mode & 0o777 == 0o700
    finally:
        node.close()


def test_unix_folder_open_to_others_is_refused(tmp_path):
    (tmp_path / "redirect").mkdir(mode=0o755)
    with pytest.raises(ResourceFault, match="chmod 700"):
        open_redirector("unix", tmp_path)
