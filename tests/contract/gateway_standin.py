"""The daemon's side of the gateway's link, as small as the protocol allows: real arena, real gateway process.

A thread answers what the gateway says; everything said is kept in `said`, and tests wait for it by `wait_for`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import gateway_template
import msgspec

from lifl.core.errors import ArenaFull
from lifl.core.fields import Message
from lifl.core.ids import Key, Kind
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.planning.client_list import Told
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution, pack_contribution
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.schema import Layout
from lifl.node.cli_server import listen_unix
from lifl.node.machine import listen_tcp
from lifl.shm.owned_arena import OwnedArena
from lifl.tls.tls_socket import TlsSocket

WAIT_S = 60.0
"""Only a failing test waits so long."""
NONE = "pass"
_RUN = "import sys; {settings}; from lifl.node.gateway.main import main; sys.exit(main())"


class StandIn:
    """`settings` are Python statements that run in the gateway first, to make its limits small; `quotas` its flags.

    With an identity folder its TCP is TLS; with a cookie it asks who comes by TCP for that.
    """

    def __init__(
        self,
        arena_bytes: int = 32 << 20,
        connections_max: int = 16,
        settings: str = NONE,
        identity: Path | None = None,
        cookie: Path | None = None,
        **quotas: int,
    ) -> None:
        self.quotas, self.identity, self.cookie = quotas, identity, cookie
        self.folder = tempfile.TemporaryDirectory(prefix="lifl-test-")
        self.unix = str(Path(self.folder.name) / "gateway.sock")
        name = f"/lifl-test-{os.getpid()}-{os.urandom(4).hex()}"
        self.arena = OwnedArena.create(name, arena_bytes, 7, entries=64)
        self._said: list[Message] = []
        self.changed = threading.Condition()
        self.jobs: dict[str, tuple[int, Layout]] = {}
        self.options: dict[str, dict[str, object]] = {}
        self.conns: dict[str, int] = {}
        self.keys: dict[bytes, tuple[str, int, str, int]] = {}
        self.accepted: dict[tuple[str, int, str], Key] = {}
        self.model: Key | None = None
        self.busy = 0
        self.holding_back: list[gm.Granted] | None = None
        self.react: Callable[[Message], None] = lambda message: None
        self.settings = settings
        self.connections_max = connections_max
        self.unanswered: type | tuple[type, ...] = ()
        self.listener = listen_tcp("127.0.0.1:0")
        self.address = self.listener.getsockname()
        self.tcp = "{}:{}".format(*self.address)
        self.unix_listener = listen_unix(Path(self.unix))
        try:
            self._start()
        except BaseException:
            self.kill()
            self._release()
            raise

    def _start(self) -> None:
        self.link, theirs = socket.socketpair()
        fds = [theirs.fileno(), self.listener.fileno(), self.unix_listener.fileno()]
        options = {"--arena": self.arena.name, "--connections-max": str(self.connections_max)}
        options |= {f"--{name.replace('_', '-')}": str(value) for name, value in self.quotas.items()}
        if self.identity is not None:
            options["--identity"] = str(self.identity)
        if self.cookie is not None:
            options["--cookie"] = str(self.cookie)
        self.process = self._process([word for pair in options.items() for word in pair], fds)
        theirs.close()
        self.arena.places.on_open = self._opened
        self._said = [message for message in self.said if not isinstance(message, gm.GatewayReady)]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        assert self.wait_for(gm.GatewayReady).listen == (self.tcp,)

    def _process(self, flags: list[str], fds: list[int]) -> subprocess.Popen[bytes] | gateway_template.Forked:
        if self.settings == NONE:
            return gateway_template.fork(flags, fds)
        flags += [word for pair in zip(gateway_template.PASSED, map(str, fds), strict=True) for word in pair]
        command = [sys.executable, "-c", _RUN.format(settings=self.settings), *flags]
        return subprocess.Popen(command, pass_fds=fds, stderr=subprocess.PIPE)

    def _opened(self, number: int, fd: int) -> None:
        socket.send_fds(self.link, [encode(gm.SegmentOpened(number))], [fd])

    def kill(self) -> None:
        """kill -9 of the gateway; what it was writing is freed."""
        self.process.kill()
        self.process.communicate()
        if threading.current_thread() is not self.thread:
            self.thread.join(WAIT_S)
        self.link.close()
        for key in list(self.keys):
            self.arena.free(Key.unpack(key))
        self.keys.clear()

    def start_again(self) -> None:
        """A new gateway on the same addresses; it dies with the thread that calls this."""
        self._start()
        for name, (number, layout) in self.jobs.items():
            self.send(gm.JobSchema(name, number, layout.tensors))

    def send(self, message: Message) -> None:
        self.link.sendall(encode(message))

    def deliver(self, conn: int, message: Message) -> None:
        self.send(gm.TellClient(conn, cm.packed(message)))

    def open_job(self, name: str, layout: Layout, bytes_per_s: int = 0, listed: Told = msgspec.UNSET) -> None:
        number = len(self.jobs) + 1
        self.jobs[name] = (number, layout)
        self.send(gm.JobSchema(name, number, layout.tensors, bytes_per_s=bytes_per_s, listed=listed))

    def put_model(self, data: bytes) -> None:
        self.model = self.arena.alloc(Kind.MODEL, 1, 0, len(data))
        self.arena.data(self.model)[:] = data
        self.arena.seal(self.model, 1.0, 0)

    def select(self, client: str, job: str, number: int, **options: object) -> None:
        layout = self.jobs[job][1]
        if options != self.options.get(job, {}):
            self.options[job] = options
            self.send(gm.JobSchema(job, self.jobs[job][0], layout.tensors, dict(options)))
        selected = cm.Selected(job, number, 60.0, (), layout.data_bytes)
        self.send(gm.TellClient(self.conns[client], cm.packed(selected), job))

    @property
    def said(self) -> list[Message]:
        """What the gateway has said; what was answered is there."""
        with self.changed:
            return list(self._said)

    def wait_for(self, kind: type, count: int = 1):  # type: ignore[no-untyped-def]
        """The `count`-th message of `kind`."""

        def found() -> list[Message]:
            return [message for message in self.said if isinstance(message, kind)]

        with self.changed:
            assert self.changed.wait_for(lambda: len(found()) >= count, WAIT_S), (kind, self.said)
            return found()[count - 1]

    def count(self, kind: type) -> int:
        return sum(isinstance(message, kind) for message in self.said)

    def live(self) -> int:
        return sum(1 for _ in self.arena.live())

    def wait_until_empty(self) -> None:
        """Until nothing is in the arena; a client may hear of a refusal before the daemon does."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.live() == 0, WAIT_S), (self.live(), self.said)

    def _serve(self) -> None:
        decoder: FrameDecoder[gm.FromGateway] = FrameDecoder(gm.FromGateway)
        link = self.link
        while data := _receive(link):
            decoder.feed(data)
            while (message := decoder.next_message()) is not None:
                with self.changed:
                    self._answer(message)
                    self._said.append(message)
                    self.changed.notify_all()
                    self.react(message)

    def _answer(self, message: gm.FromGateway) -> None:
        if isinstance(message, self.unanswered):
            return
        match message:
            case gm.ClientJoined(conn, client):
                self.conns[client] = conn
            case gm.Admit():
                self._admit(message)
            case gm.Sealed(conn, key):
                job, number, client, _ = self.keys.pop(key)
                self.accepted[job, number, client] = Key.unpack(key)
                self.deliver(conn, cm.Accepted(job, number))
            case gm.Aborted(conn, key):
                self.keys.pop(key)
                self.arena.free(Key.unpack(key))
            case gm.WantModel(conn, job, number):
                if self.model is None:
                    self.deliver(conn, cm.Refusal("round-over", "round", "there is no model", job, number))
                else:
                    self.send(gm.ModelGranted(conn, job, number, self.model.pack()))

    def _admit(self, admit: gm.Admit) -> None:
        job, number, client, conn = admit.job, admit.round, admit.client, admit.conn
        if (job, number, client) in self.accepted:
            self.deliver(conn, cm.Accepted(job, number))
            return
        if self.busy:
            self.busy -= 1
            self.deliver(conn, cm.Busy(job, number, 0.01))
            return
        index, layout = self.jobs[job]
        try:
            key = self.arena.alloc(Kind.UPDATE, index, number, layout.data_bytes, CONTRIBUTION_BYTES_MAX, index)
        except ArenaFull:
            self.deliver(conn, cm.Busy(job, number, 0.05))
            return
        self.keys[key.pack()] = (job, number, client, conn)
        member = pack_contribution(Contribution(client, admit.weight, admit.metrics))
        grant = gm.Granted(conn, key.pack(), member)
        if self.holding_back is None:
            self.send(grant)
        else:
            self.holding_back.append(grant)

    def close(self, status: int = 0) -> str:
        """Drains the gateway, checks its exit status, removes the arena; returns what it wrote to stderr."""
        if self.process.poll() is None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it leaves by itself just now
                self.send(gm.Drain())
        _, logged = self.process.communicate(timeout=WAIT_S)
        self.thread.join(WAIT_S)
        self.link.close()
        self._release()
        text = logged.decode()
        assert self.process.returncode == status, text
        assert "Traceback" not in text, text
        return text

    def _release(self) -> None:
        self.arena.close(unlink=True)
        self.listener.close()
        self.unix_listener.close()
        self.folder.cleanup()


def _receive(link: socket.socket) -> bytes:
    try:
        return link.recv(1 << 16)
    except ConnectionResetError:  # killed with unread bytes
        return b""


class Peer:
    """A client's end that says whatever a test wants; with a context over TLS."""

    sock: socket.socket | TlsSocket

    def __init__(self, node: StandIn, unix: bool = False, context: ssl.SSLContext | None = None) -> None:
        if unix:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.connect(node.unix)
        else:
            self.sock = socket.create_connection(node.address)
        self.sock.settimeout(WAIT_S)
        if context is not None:
            assert isinstance(self.sock, socket.socket)
            self.sock = TlsSocket(self.sock, context, host="127.0.0.1")
            self.sock.do_handshake()
        self.decoder: FrameDecoder[cm.ToClient] = FrameDecoder(cm.ToClient)

    def hello(self, client: str = "c1", direct: bool = False, digests: bool = False) -> cm.Welcome:
        knows = (*([cm.DIGESTS] if digests else []), *([cm.SEGMENTS] if direct else []))
        self.send(cm.Hello(cm.PROTOCOL_VERSION, client, direct, knows))
        welcome = self.receive()
        assert isinstance(welcome, cm.Welcome), welcome
        return welcome

    def send(self, message: Message) -> None:
        self.sock.sendall(encode(message))

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self) -> cm.ToClient | None:
        """The next message; None at the end of the stream."""
        while (message := self.decoder.next_message()) is None:
            data = self.sock.recv(self.decoder.missing_bytes)
            if not data:
                return None
            self.decoder.feed(data)
        return message

    def read_exactly(self, nbytes: int) -> bytes:
        got = bytearray()
        while len(got) < nbytes:
            data = self.sock.recv(nbytes - len(got))
            assert data
            got += data
        return bytes(got)

    def is_quiet(self) -> bool:
        """Nothing is there to be read."""
        return not select.select([self.sock], [], [], 0)[0]

    def close(self) -> None:
        self.sock.close()
