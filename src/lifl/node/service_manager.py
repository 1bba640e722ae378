"""What a service manager such as systemd is told by a node that it started, and what it hands over.

The protocols are those of sd_notify(3) and sd_listen_fds(3): a datagram to the socket in ``$NOTIFY_SOCKET``, and
listening sockets as descriptors from 3 on, meant for the process in ``$LISTEN_PID``.  Clients that come while the node
is started again then wait in the socket's queue, and are not refused.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from lifl.core.errors import ResourceFault

log = logging.getLogger("lifl.service")

FIRST_DESCRIPTOR = 3
HANDED_OVER_MAX = 16
Place = tuple[Any, ...]
"""Host and port, as `socket.getsockname` says them."""


def tell(*words: str) -> None:
    """Tell the service manager, such as ``READY=1``; without one nothing is said, and nothing of it ends a node."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(words).encode(), "\0" + address[1:] if address.startswith("@") else address)
    except (OSError, ValueError) as error:
        log.warning("service.untold address=%a what=%a: %s", address, words[0], error)


def handed_over() -> dict[Place, socket.socket]:
    """Return the listening TCP sockets that were handed over to this process, by host and port; the caller's to close.

    Raise `ResourceFault` when what was handed over is something else.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    text = os.environ.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # they are not our children's
    if not text.isdecimal() or int(text) > HANDED_OVER_MAX:
        raise ResourceFault(f"LISTEN_FDS={text!r}: at most {HANDED_OVER_MAX} sockets may be handed over to a node")
    found: dict[Place, socket.socket] = {}
    for number in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(text)):
        try:
            os.set_inheritable(number, False)
            sock = socket.socket(fileno=number)
            is_door = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
            listens = is_door and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise ResourceFault(f"descriptor {number} of LISTEN_FDS={text} is no socket: {error.strerror}") from error
        if not listens:
            raise ResourceFault(f"descriptor {number} of LISTEN_FDS={text} is no listening TCP socket (ListenStream=)")
        found[sock.getsockname()[:2]] = sock
    return found


def check_all_taken(left: dict[Place, socket.socket]) -> None:
    """Raise `ResourceFault` when a socket was handed over at which the node does not listen: its clients would wait."""
    for sock in left.values():
        sock.close()
    for host, port in left:
        raise ResourceFault(
            f"a socket at {host}:{port} was handed over, which is no address of the node's config: give both the same, "
            "ListenStream= of the unit and listen (or control, http) of the node"
        )
