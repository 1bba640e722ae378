"""What the daemon and the workers share without eBPF: the names of the inboxes, and the words of the memfd.

Counters.  Processes that add to one word without atomic instructions lose counts, so every sender counts in words of
its own, which are never reset, and the reader adds them up: a row of the *matrix* has for each destination the records
delivered and refused; a row of *senders* has the totals.  What a destination got is its column's sum less the sum
at its registration.  The memfd, in words:

    routes (16,384) | slots (8 x 1,024) | senders (8 x 1,024) | matrix (1,024 rows of 2 x 1,024)

It is 16.4 MB long, of which pages that no one writes take no memory.
"""

from __future__ import annotations

from lifl.core.ids import SLOTS_MAX
from lifl.redirect.framing import SEND_BYTES_MAX
from lifl.redirect.tables import SLOTS_WORDS

SENDER_WORDS = 8
RUNS, UNKNOWN, DEAD, OVER, MALFORMED = range(5)
ROW_WORDS = 2 * SLOTS_MAX
DELIVERED, REFUSED = range(2)
SENDERS_AT = SLOTS_WORDS
MATRIX_AT = SENDERS_AT + SLOTS_MAX * SENDER_WORDS
SHARED_WORDS = MATRIX_AT + SLOTS_MAX * ROW_WORDS
"""The words after the routes: slots, senders, matrix."""

RECEIVE_BYTES = 2 * SEND_BYTES_MAX  # so that a longer message is seen to be one
READS_PER_CALL_MAX = 16


def inbox_path(folder: int, slot: int, generation: int) -> str:
    """Return the address of a worker's inbox, by a descriptor of the folder."""
    return f"/proc/self/fd/{folder}/{slot}.{generation}"
