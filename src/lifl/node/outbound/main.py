"""The outbound process: brings committed models to a store elsewhere, by fsspec, which only this process imports.

Each model is sent by a thread, those of different jobs at a time; what became of it is told to `lifld`, which says
what is tried again, and when.  Who it is at the store says its environment, which is `lifld`'s.  The round that was
sent last stands in the job's folder, `SENT`.  It ends when nothing was asked of it for `OUTBOUND_IDLE_S`, and with
`lifld`.

    python -m lifl.node.outbound.main --fd N
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lifl.confine import box, signals
from lifl.core.fields import Message
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.protocol.gateway import Drain
from lifl.core.protocol.outbound import ModelSent, ModelUnsent, SendModel

SENT = ".lifl-uploaded"
"""In a job's folder: the number of the round that was sent last."""
READ_BYTES = 64 * 1024
UPLOADS_AT_ONCE = 4
"""Models that are sent at a time, each of another job."""
OUTBOUND_IDLE_S = 30.0
"""The process ends when it has had nothing to do for so long."""
LOCAL = ("file", "local")
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
_PR_SET_PDEATHSIG = 1


def send(message: SendModel) -> None:
    """Bring the files there.  Raise `FileNotFoundError` when one is not here, and whatever the store's library does."""
    for path in message.files:
        os.stat(path)
    import fsspec  # type: ignore[import-untyped]

    fs, root = fsspec.core.url_to_fs(message.url)
    folder = f"{root.rstrip('/')}/{message.job}"
    local = bool(set(LOCAL) & set([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol))
    if local:
        fs.makedirs(folder, exist_ok=True)
    for path in reversed(message.files):  # the model last: where it is, its states are, too
        target = f"{folder}/{os.path.basename(path)}"
        if local:  # a store of objects shows none before it is whole
            fs.put_file(path, f"{target}.part")
            os.replace(f"{target}.part", target)
        else:
            fs.put_file(path, target)
    sent = Path(message.files[0]).with_name(SENT)
    partial = sent.with_name(f"{SENT}.tmp")
    partial.write_text(str(message.round))
    partial.replace(sent)


def told(message: SendModel) -> Message:
    """Send a model; return what became of it."""
    at = message.number, message.round
    try:
        send(message)
    except ImportError as error:
        return ModelUnsent(*at, f"a library is missing: {error}; pip install 'lifl[s3]'"[:TEXT_CHARS_MAX])
    except Exception as error:  # noqa: BLE001 - a store's library may raise anything; lifld gets it
        gone = not all(os.path.exists(path) for path in message.files)
        return ModelUnsent(*at, said(error, message.url), gone)
    return ModelSent(*at)


def said(error: BaseException, url: str) -> str:
    """Return what is to be shown of an error: no secret of the environment."""
    text = f"{type(error).__name__}: {error}"
    for name in SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    text = text.encode(errors="replace").decode()
    return f"{url} takes nothing: {text}"[:TEXT_CHARS_MAX]


class Outbound:
    """Does what `lifld` asks over `sock`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._busy = 0
        self._done = os.eventfd(0, os.EFD_CLOEXEC)
        self._threads = ThreadPoolExecutor(UPLOADS_AT_ONCE)

    def _send(self, message: SendModel) -> None:
        answer = told(message)
        with self._lock:
            self._sock.sendall(encode(answer))
            self._busy -= 1
        os.eventfd_write(self._done, 1)

    def serve(self) -> None:
        """Return when `lifld` says Drain or is gone, or nothing was asked for long."""
        decoder: FrameDecoder[Any] = FrameDecoder(SendModel | Drain)
        while True:
            with self._lock:
                patience_s = None if self._busy else OUTBOUND_IDLE_S
            readable, _, _ = select.select([self._sock.fileno(), self._done], [], [], patience_s)
            if not readable:
                return
            if self._done in readable:
                os.eventfd_read(self._done)
            if self._sock.fileno() not in readable:
                continue
            data = self._sock.recv(READ_BYTES)
            if not data:
                return
            decoder.feed(data)
            while (message := decoder.next_message()) is not None:
                if isinstance(message, Drain):
                    return
                with self._lock:
                    self._busy += 1
                self._threads.submit(self._send, message)


def main() -> None:
    """Run the process; what is being sent when it ends is sent again by the next one."""
    parser = argparse.ArgumentParser(prog="lifl-outbound", description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    options = parser.parse_args()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signals.leave_to_lifld()
    box.enter_outbound()
    try:
        Outbound(socket.socket(fileno=options.fd)).serve()
    except OSError as error:
        print(f"outbound: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)  # threads that still send wait for the network


if __name__ == "__main__":
    main()
