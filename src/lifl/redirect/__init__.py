"""The redirector: keys go straight from the process that has them to the process that needs them.

`open_redirector` is for the daemon, `open_port` for workers.  Two implementations stand behind one interface: an
eBPF program on a sockmap, and AF_UNIX sockets for machines that do not allow it.
"""

from lifl.redirect.framing import is_wake
from lifl.redirect.interface import Port, Redirector, Registration, SlotCounters, Totals
from lifl.redirect.open import open_port, open_redirector, preload

__all__ = [
    "Port",
    "Redirector",
    "Registration",
    "SlotCounters",
    "Totals",
    "is_wake",
    "open_port",
    "open_redirector",
    "preload",
]
