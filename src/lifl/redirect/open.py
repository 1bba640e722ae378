"""Which redirector runs: the daemon tries, a worker takes what its registration says.

The ports are imported with this module, so that a worker that was just forked finds them loaded; the daemon's sides are
imported on use, since the loader of the eBPF program brings `subprocess` and `tempfile` along.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lifl.core.errors import LocalFault, ResourceFault
from lifl.redirect.interface import Port, Redirector, Wanted
from lifl.redirect.sockmap.port import SockmapPort
from lifl.redirect.unix.port import UnixPort


def open_redirector(wanted: Wanted, folder: Path) -> Redirector:
    """Open the redirector of a node; `folder` is the node's own, sockets are made in ``folder/redirect``.

    ``auto`` takes the sockmap where this machine allows it (found out by loading it and sending a record through),
    else AF_UNIX, and `why` says what is missing.  Raise `ResourceFault` if the wanted one is impossible.
    """
    from lifl.redirect.sockmap.redirector import SockmapRedirector
    from lifl.redirect.unix.redirector import UnixRedirector

    if wanted not in ("auto", "sockmap", "unix"):
        raise LocalFault(f'redirector is "auto", "sockmap" or "unix", not {wanted!r}')
    if wanted == "unix":
        return UnixRedirector(
            folder, 'as configured; redirector = "auto" takes the eBPF sockmap where the machine allows it'
        )
    try:
        return SockmapRedirector()
    except ResourceFault as fault:
        if wanted == "sockmap":
            raise
        return UnixRedirector(folder, f"the eBPF sockmap is not possible here: {fault}")


def open_port(port: dict[str, Any], descriptors: list[int]) -> Port:
    """Return the port of a `Registration` in the process that got its descriptors, which belong to the port then."""
    kind = port.get("kind")
    if kind == "sockmap" and len(descriptors) == 3:
        return SockmapPort(port, descriptors)
    if kind == "unix" and len(descriptors) == 4:
        return UnixPort(port, descriptors)
    raise LocalFault(f"a port of kind {kind!r} with {len(descriptors)} descriptors is none that a redirector registers")
