"""What lets somebody bring an update to one fold, under one name, until a time.

Its host draws a secret for each session and tells it to the node; the credential in a ticket is what HMAC makes of the
session, the fold, the name and the time with it.  The node keeps no list: whoever has the credential may bring the one
update of that name.  A *standing* ticket is for no fold, but for all of the session, one update to each.
"""

from __future__ import annotations

import hashlib
import hmac

ANY_FOLD = 0
"""In the place of a fold: the ticket is a standing one."""


def credential_of(secret: str, job: str, fold: int, client: str, expires_unix_s: int) -> str:
    """Return the credential of a ticket, 64 hexadecimal digits; no field can have a newline."""
    text = f"LIFL ticket\n{job}\n{fold}\n{client}\n{expires_unix_s}"
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def fits(credential: str, secret: str, job: str, fold: int, client: str, expires_unix_s: int) -> bool:
    """Return whether it is that credential; without a secret none is."""
    wanted = credential_of(secret, job, fold, client, expires_unix_s)
    return bool(secret) and hmac.compare_digest(credential.encode(), wanted.encode())
