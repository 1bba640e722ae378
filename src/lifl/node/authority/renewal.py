"""A node renews its certificate by itself: when half of its time is over, and when the machine has new addresses.

Nothing is asked again and again: a timer goes off at the moment, and the kernel tells when addresses change.  The
authority's own node certifies itself; another asks the coordinator, in a thread, since that may take long.  What fails
is tried again, with growing pauses, and is told.  A connection that is there stays as it is; the next one shows the new
certificate (`tls/contexts.py`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from lifl.core.errors import LiflError
from lifl.node.authority.addresses import AddressWatch
from lifl.node.authority.credentials import Credentials
from lifl.tls.enrolment import Obtained, renew

log = logging.getLogger("lifl.authority")

RETRY_S = 30.0
"""After how long a renewal that failed is tried again; each further wait is twice as long."""
RETRY_S_MAX = 3600.0


class Renewal:
    """Keeps the certificate of a node; `home` tells the control address of the coordinator, if it is known."""

    def __init__(self, credentials: Credentials, home: Callable[[], str]) -> None:
        self.trouble = ""
        """Why the certificate could not be renewed, when it was tried last."""
        self._credentials = credentials
        self._home = home
        self._pause_s = RETRY_S
        self._under_way = False
        self._timer: asyncio.TimerHandle | None = None
        self._watch: AddressWatch | None = None
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Begin; a node without certificates has nothing to renew, and nobody renews those of another PKI."""
        if self._credentials.contexts is not None and self._credentials.renews:
            self._watch = AddressWatch(self._moved)
            self._credentials.on_renew = lambda: self._set(0.0)
            self._plan()

    def close(self) -> None:
        """Renew no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.close()
        self._credentials.on_renew = None

    def _plan(self) -> None:
        credentials = self._credentials
        due_unix_s = time.time() if credentials.has_moved else credentials.own.renews_unix_s
        self._set(due_unix_s - time.time())

    def _set(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, wait_s), self.begin)

    def _moved(self) -> None:
        """Renew when there is an address that the certificate does not have."""
        if self._credentials.has_moved:
            log.info("certificate.moved hosts=%s", " ".join(self._credentials.hosts()))
            self._set(0.0)

    def begin(self) -> None:
        """Renew now."""
        if self._under_way:
            return
        self._under_way = True
        if self._credentials.authority is not None:
            self._done(self._credentials.renew_own())
            return
        contexts, hosts, home = self._credentials.contexts, self._credentials.hosts(), self._home()
        assert contexts is not None

        def run() -> None:
            try:
                found: Obtained | LiflError = renew(home, contexts, hosts)
            except LiflError as error:
                found = error
            try:
                self._loop.call_soon_threadsafe(self._got, found)
            except RuntimeError:  # the node has ended
                return

        threading.Thread(target=run, name="renewal", daemon=True).start()

    def _got(self, found: Obtained | LiflError) -> None:
        if isinstance(found, Obtained):
            try:
                found.save(self._credentials.folder)
            except LiflError as error:
                self._done(error)
            else:
                self._done(None)
        else:
            self._done(found)

    def _done(self, error: LiflError | None) -> None:
        self._under_way = False
        if self._timer is None or self._watch is None:
            return
        if error is None:
            self.trouble, self._pause_s = "", RETRY_S
            log.info("certificate.renewed serial=%s", self._credentials.own_serial)
            self._set(self._credentials.own.renews_unix_s - time.time())
            return
        self.trouble = f"the node's certificate could not be renewed: {error}"
        log.warning("certificate.stays %s; next try in %g s", error, self._pause_s)
        self._set(self._pause_s)
        self._pause_s = min(2 * self._pause_s, RETRY_S_MAX)
