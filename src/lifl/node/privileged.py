"""What a node that root starts has to do as root: its doors, and the eBPF program.

All of it is done before `lifld` has a second thread: rights are a thread's own, and one that was there before would
keep them.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from lifl.confine.account import Account
from lifl.core.config.node import NodeConfig, coordinates
from lifl.node import machine, service_manager
from lifl.redirect import preload


class Privileged(NamedTuple):
    """The listening sockets of the gateway, for other nodes and for HTTP (None: there are none), and the program."""

    gateway: socket.socket
    control: socket.socket | None
    http: socket.socket | None
    program: Callable[[int], dict[str, int]] | None


@contextmanager
def opened_by(account: Account, config: NodeConfig) -> Iterator[Privileged]:
    """Open what takes rights, and give them up for good; the doors are closed at the end.  Raise `ResourceFault`."""
    with contextlib.ExitStack() as doors:
        with account.raised():
            handed = service_manager.handed_over()
            gateway = doors.enter_context(machine.listen_tcp(config.listen, handed=handed))
            control = None
            if config.control or not coordinates(config):
                control = doors.enter_context(machine.listen_tcp(config.control or "127.0.0.1:0", handed=handed))
            http = None
            if config.http:
                http = doors.enter_context(machine.listen_tcp(config.http, "--http", handed))
            service_manager.check_all_taken(handed)
            program = preload(config.redirector)
        account.drop()
        yield Privileged(gateway, control, http, program)
