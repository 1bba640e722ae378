"""What a node must know to bring the partial of a branch: a word that only the control channel carries.

Anyone may open a connection to a gateway, and (number, epoch, branch) can be guessed.  So the coordinator tells the
node that has a branch a secret with it, and the partial is taken when that is said.  It is made from the seed of the
coordinator's state folder: a coordinator that starts again knows what it told, and nothing is kept for it.
"""

from __future__ import annotations

import hashlib
import hmac

SECRET_CHARS = 32


class OfferSecrets:
    """The secrets of one cluster; `seed` is its own."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed

    def of(self, number: int, epoch: int, branch: int) -> str:
        """Return the secret of a branch."""
        name = f"{number}/{epoch}/{branch}".encode()
        return hmac.new(self._seed, name, hashlib.sha256).hexdigest()[:SECRET_CHARS]

    def fits(self, secret: str, number: int, epoch: int, branch: int) -> bool:
        """Return whether this is the secret of a branch; how long it takes tells nothing."""
        return hmac.compare_digest(secret.encode(), self.of(number, epoch, branch).encode())
