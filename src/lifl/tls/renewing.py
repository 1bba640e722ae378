"""An account's identity renews by itself when it is used and half of its time is over; whoever uses it does not wait.

The authority is asked where the identity came from, in a thread that ends with the process.  What fails is logged, and
tried again at a later use; of several processes with one identity one does it.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from lifl.core.errors import LiflError, ResourceFault
from lifl.tls.contexts import Contexts
from lifl.tls.enrolment import renew
from lifl.tls.folder import home_of, locked

log = logging.getLogger("lifl.tls")

RETRY_S = 600.0
"""After a renewal was begun it is not begun again in this process for so long."""
_begun_s: dict[Path, float] = {}
_lock = threading.Lock()


def renew_when_due(contexts: Contexts) -> threading.Thread | None:
    """Begin to renew an identity if that is due; return the thread that does."""
    folder = contexts.files.folder
    if time.time() < contexts.own.renews_unix_s or not home_of(folder):
        return None
    with _lock:
        if time.monotonic() - _begun_s.get(folder, -RETRY_S) < RETRY_S:
            return None
        _begun_s[folder] = time.monotonic()
    thread = threading.Thread(target=_renewed, args=(contexts,), name="renewal", daemon=True)
    thread.start()
    return thread


def _renewed(contexts: Contexts) -> None:
    try:
        if renew_now(contexts, due_unix_s=time.time()):
            log.info("identity.renewed folder=%s", contexts.files.folder)
    except LiflError as error:
        log.warning("identity.stays folder=%s until_unix_s=%.0f %s", contexts.files.folder, _end(contexts), error)


def _end(contexts: Contexts) -> float:
    return contexts.own.expires_unix_s


def renew_now(contexts: Contexts, due_unix_s: float | None = None) -> bool:
    """Renew an identity and return True; False when another process does, or it is not due any more at that time.

    Raise `Refused`, `RemoteFault` and `ResourceFault` when it cannot be done.
    """
    folder = contexts.files.folder
    home = home_of(folder)
    if not home:
        text = f"{folder} does not say where its certificate came from: it was not made by `lifl enroll`"
        raise ResourceFault(f"{text}; renew it where it was made")
    try:
        with locked(folder) as mine:
            if not mine or (due_unix_s is not None and due_unix_s < contexts.own.renews_unix_s):
                return False
            renew(home, contexts, by_proxy=True).save(folder)
    except OSError as error:
        raise ResourceFault(f"identity folder {folder} cannot be written: {error.strerror}") from error
    return True
