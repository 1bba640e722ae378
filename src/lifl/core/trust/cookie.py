"""How a node that is reached on loopback alone knows who is of its own account: by a cookie, which is never sent.

It lies in the state folder, for the account's eyes alone.  The gateway tells where, with a nonce, and the client shows
a proof that it has read the cookie (as in SAFECOOKIE of Tor's control protocol).  The proof is for the address that was
dialled: who listens at another one has no use for it at the node's.
"""

from __future__ import annotations

import hashlib
import hmac

NAME = "cookie"
"""What the file is called."""
COOKIE_BYTES = 32
NONCE_BYTES = 32
_PURPOSE = b"LIFL loopback client\n"


def proof_of(cookie: bytes, nonce: str, address: str) -> str:
    """Return the HMAC-SHA256 (64 hex digits) by which who has the cookie shows it, to the listener at HOST:PORT."""
    return hmac.new(cookie, _PURPOSE + f"{nonce}\n{address}".encode(), hashlib.sha256).hexdigest()


def is_proof(shown: str, cookie: bytes, nonce: str, address: str) -> bool:
    """Return whether it is the proof; how long it takes tells nothing."""
    return hmac.compare_digest(shown.encode(), proof_of(cookie, nonce, address).encode())
