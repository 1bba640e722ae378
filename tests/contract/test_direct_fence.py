"""A direct client that goes on writing to its slot after its gateway or `lifld` was killed harms no later update.

The writer here is the worst that is promised for: it never looks whether its connection still stands (as one that is
within a piece of its copy does not), for less than the grace.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
from fleet import OneHot, arena_use, fleet, gated, objects, restart, submit, until
from nodes import Node

from lifl.client.dialling import Dialler
from lifl.client.stream import GREETING_S, Stream
from lifl.core.agent.uploads import DIRECT_GRACE_S
from lifl.core.ids import Kind
from lifl.core.protocol import client as cm

N = 2
TRIES_MAX = 10
BALLAST_BYTES = 6 << 20


class Writer:
    """A direct client that has been granted its slot and has begun to write to it."""

    def __init__(self, node: Node, job: str) -> None:
        self.job = job
        self.stream = Stream(str(node.state_dir), GREETING_S, Dialler([str(node.state_dir)]))
        self.stream.send(cm.Hello(cm.PROTOCOL_VERSION, "writer", direct=True, knows=(cm.SEGMENTS,)))
        self.slot = np.empty(0, np.uint8)

    def join(self) -> None:
        self.stream.receive()  # Welcome
        self.stream.patience(None)
        self.stream.send(cm.Join(self.job))

    def get(self, kind: type) -> cm.ToClient:
        while not isinstance(message := self.stream.receive(), kind):
            pass
        return message

    def begin(self) -> None:
        """Announces its update, and writes the slot's first bytes."""
        selected = self.get(cm.Selected)
        assert isinstance(selected, cm.Selected)
        self.stream.send(cm.Submit(self.job, selected.round, 1.0, selected.data_bytes, selected.tensors))
        go = self.get(cm.Go)
        assert isinstance(go, cm.Go) and go.direct
        self.slot = np.frombuffer(self.stream.window(go.offset, selected.data_bytes), np.uint8)
        self.slot[:4096] = 0xAB

    def go_on(self) -> None:
        """Writes the whole slot, whoever has it now."""
        self.slot[:] = 0xAB

    def close(self) -> None:
        self.slot = np.empty(0, np.uint8)
        self.stream.close()


def kill_gateway(node: Node) -> None:
    pid = node.snapshot()["node"]["gateway"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until("a new gateway", lambda: node.snapshot()["node"]["gateway"]["pid"] not in (0, None, pid))


@pytest.mark.parametrize("death", [kill_gateway, restart])
def test_a_slot_is_nobody_elses_while_its_client_may_still_write(
    start_node: Callable[..., Node], death: Callable[[Node], None]
) -> None:
    node = start_node("--redirector", "unix")
    for number in range(TRIES_MAX):
        if writer_harms_nobody(node, f"j{number}", death):
            return
    pytest.fail(f"in {TRIES_MAX} tries two clients never came back within the grace of {DIRECT_GRACE_S:g} s")


def writer_harms_nobody(node: Node, job: str, death: Callable[[Node], None]) -> bool:
    """False when the grace was over before the writer went on, after which it may harm."""
    oracle, here = OneHot(N, BALLAST_BYTES), str(node.state_dir)
    with gated(node, "fold") as (keys, (gate,)), closing(Writer(node, job)) as writer:
        # Lazy, and held at the fold: all that was accepted is still in its slot when the writer goes on.
        keys |= {"aggregation__timing": "lazy", "selection__over_provision": 1.5}
        submit(node, job, oracle.model(), **keys)
        writer.join()
        with fleet(here, job, N, oracle.update, held=[(index, 1) for index in range(N)]) as team:
            writer.begin()
            begun_s = time.monotonic()
            death(node)
            team.release()
            gate.reached()
            os.kill(node.pid, signal.SIGSTOP)  # from here on the slot is nobody else's, whatever the time is
            in_time = time.monotonic() - begun_s < DIRECT_GRACE_S
            slots = {entry.offset for entry in objects(node) if entry.kind == Kind.UPDATE}
            if in_time:
                writer.go_on()
            os.kill(node.pid, signal.SIGCONT)
            assert not in_time or len(slots) == N + 1, "the updates, and the slot that rests"
            gate.open()
            team.join()
        if in_time:
            oracle.check(node, job, team)  # the ballast too is what was sent
    assert until("the slot's return after the grace", lambda: arena_use(node) == (0, 0))
    return in_time
