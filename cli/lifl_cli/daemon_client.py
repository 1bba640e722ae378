"""The client of the daemon: one blocking connection to `lifld`, frames of `protocol/frames.py` on it.

It goes over AF_UNIX to the `lifld` of a state folder, or (`lifl --node HOST:PORT ...`) over mutual TLS to the control
port of a node, as whom the identity folder of this account says.

A request is one frame and gets one `Answer` or one `Refusal`; after Follow (or a SubmitJob that follows)
`Event` frames come until the connection ends.  A user who may open the socket in the state folder controls the
node.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import msgspec

from lifl.core.config.values import split_address
from lifl.core.errors import Refused, RemoteFault, ResourceFault
from lifl.core.identity import Role
from lifl.core.protocol.cli import Answer, Event, FromCli, ToCli
from lifl.core.protocol.client import Refusal
from lifl.core.protocol.cluster import PEER_VERSION, CommandHello, PeerRefusal
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl_cli.state import CONTROL_SOCKET, DEFAULT_STATE_DIR, LOG_FILE, absolute

ANSWER_TIMEOUT_S = 60.0
READ_BYTES = 1 << 16
NODE: tuple[Role, ...] = ("node",)


class DaemonEnded(RemoteFault):
    """`lifld` has ended before it answered."""


class DaemonClient:
    """A connection to the `lifld` of `state_dir`.  Raises `ResourceFault` when none runs there."""

    is_remote = False
    """Whether the node is on another machine: its files and processes cannot be looked at from here."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._more = f"see {state_dir / LOG_FILE}"
        self._decoder: FrameDecoder[ToCli | PeerRefusal] = FrameDecoder(ToCli | PeerRefusal)
        self._socket: Any = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(state_dir / CONTROL_SOCKET))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            self._socket.close()
            between = self._between()
            if between:
                raise ResourceFault(between) from error
            flag = "" if state_dir == absolute(DEFAULT_STATE_DIR) else f" --state {state_dir}"
            raise ResourceFault(
                f"no lifld runs with state folder {state_dir}: start it with `lifl up{flag}`"
            ) from error
        except OSError as error:
            self._socket.close()
            raise ResourceFault(
                f"cannot reach lifld at {state_dir / CONTROL_SOCKET}: {error.strerror or error}; "
                "use the account that started it, and a state folder with a short path"
            ) from error

    def _between(self) -> str:
        """Return what to tell when a daemon holds the folder that does not listen (yet, or any more); else nothing."""
        from lifl.node.locks import UP, holder

        found = holder(self._state_dir)
        if found is None or found.state != UP:
            return found.text(self._state_dir) if found is not None else ""
        return (
            f"the lifld (pid {found.pid}) of state folder {self._state_dir} does not answer: it has just ended, and "
            f"its processes are ending (try again), or {CONTROL_SOCKET} was removed (then: kill {found.pid})"
        )

    def __enter__(self) -> DaemonClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    @property
    def lifld_pid(self) -> int:
        """The process at the other end, as the kernel says; 0 when it is in another PID namespace."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid: int = struct.unpack("iII", credentials)[0]
        return pid

    def ask(self, request: FromCli, later_s: float = 0.0) -> dict[str, Any]:
        """Return the result of `request`.  Raise `Refused` for a "no", `RemoteFault` when `lifld` is gone.

        `later_s`: how long what is asked for may take, before the answer is due.
        """
        patience_s = later_s + ANSWER_TIMEOUT_S
        self._socket.settimeout(patience_s)
        frame = _frame(request)
        try:
            message = self._answer(frame)
        except TimeoutError as error:
            raise RemoteFault(f"lifld did not answer within {patience_s:.0f} s; {self._more}") from error
        if isinstance(message, PeerRefusal):
            raise Refused("not-taken", "", message.text)
        if isinstance(message, Refusal) and self.is_remote and message.code == "protocol":
            from lifl.tls.enrolment import GATEWAYS_PORT

            raise Refused("wrong-port", "--node", f"it is {GATEWAYS_PORT}")
        if isinstance(message, Refusal):
            raise Refused(message.code, message.field, message.text)
        if not isinstance(message, Answer):
            raise RemoteFault(f"lifld answered with {type(message).__name__} instead of Answer")
        return message.result

    def _answer(self, frame: bytes) -> ToCli | PeerRefusal:
        try:
            self._socket.sendall(frame)
        except (BrokenPipeError, ConnectionResetError) as error:
            try:
                return self._next()  # it may have said why it closed the connection
            except DaemonEnded:
                raise DaemonEnded(f"lifld has just ended; {self._more}") from error
        return self._next()

    def events(self) -> Iterator[Event]:
        """Yield what happens from now on, as it happens, up to ``job.over``."""
        self._socket.settimeout(None)
        while True:
            message = self._next()
            if not isinstance(message, Event):
                raise RemoteFault(f"lifld sent {type(message).__name__} where events are due")
            yield message
            if message.name == "job.over":
                return

    def _next(self) -> ToCli | PeerRefusal:
        while True:
            message = self._decoder.next_message()
            if message is not None:
                return message
            try:
                data = self._socket.recv(READ_BYTES)
            except ConnectionResetError:
                data = b""
            if not data:
                raise DaemonEnded(f"lifld ended in the middle of an answer; {self._more}")
            self._decoder.feed(data)


class RemoteDaemon(DaemonClient):
    """A connection to the control port of a node.  Raises `ResourceFault` when it cannot be made, or not as anybody."""

    is_remote = True

    def __init__(self, address: str, identity: str | None) -> None:
        from lifl.tls.contexts import Contexts
        from lifl.tls.folder import load, sole_folder, user_folder
        from lifl.tls.proxy import connected
        from lifl.tls.renewing import renew_when_due
        from lifl.tls.tls_socket import TlsSocket

        host, port = split_address(address, "--node")
        self._more = f"see the log of the node at {address}"
        self._decoder = FrameDecoder(ToCli | PeerRefusal)
        folder = user_folder(address, identity)
        files = load(folder)
        if files is None and not identity and (sole := sole_folder()) is not None:
            files = load(sole)
        if files is None:
            text = f"there is no identity in {folder}: get one with `lifl enroll {address} --token-file F`"
            raise ResourceFault(f"{text}, or name its folder with --identity DIR")
        contexts = Contexts(files)
        self._renewal = renew_when_due(contexts)
        try:
            raw = connected(host, port, ANSWER_TIMEOUT_S)
            self._socket = TlsSocket(raw, contexts.client(), host=host)
            try:
                self._socket.do_handshake()
                contexts.check_peer(self._socket, NODE)
                self._socket.sendall(encode(CommandHello(PEER_VERSION)))
            except BaseException:
                raw.close()
                raise
        except OSError as error:
            raise ResourceFault(f"the node at {address} cannot be reached: {error.strerror or error}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._renewal is not None:
            self._renewal.join()  # a command may be over sooner than that

    @property
    def lifld_pid(self) -> int:
        """Nothing: it is a process of another machine."""
        return 0


def daemon_at(state_dir: Path) -> DaemonClient:
    """Return a connection to the node that a command is for: that of ``lifl --node``, else that of a state folder."""
    given = click.get_current_context().find_root().params
    if given.get("node"):
        return RemoteDaemon(given["node"], given.get("identity"))
    return DaemonClient(state_dir)


def _frame(request: FromCli) -> bytes:
    """Return the frame of a request.  Raise `Refused` when `lifld` would end the connection for what is in it."""
    kind = type(request).__name__
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=FromCli)
        return encode(request)
    except UnicodeEncodeError as error:
        text = f"{error.object!r:.80} is not UTF-8: nothing here is called so, and no file of a job may be"
        raise Refused("not-utf8", kind, text) from error
    except msgspec.ValidationError as error:
        from lifl_cli.arguments import refusal

        raise refusal(request, error) from error
