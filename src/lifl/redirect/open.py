"""Which redirector runs: the daemon tries, a worker takes what its registration says.

The ports are imported with this module, so that a worker that was just forked finds them loaded; the daemon's sides are
imported on use, since the loader of the eBPF program brings `subprocess` and `tempfile` along.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lifl.core.errors import LocalFault, ResourceFault
from lifl.redirect.interface import Port, Redirector, Wanted
from lifl.redirect.sockmap.port import SockmapPort
from lifl.redirect.unix.port import UnixPort


def preload(wanted: Wanted) -> Callable[[int], dict[str, int]] | None:
    """Load the eBPF program for an `open_redirector` to come, which then takes no rights; None: none is wanted.

    It ends as it would end there: why it cannot be loaded is raised there.
    """
    from lifl.redirect.sockmap.redirector import load_program

    if wanted == "unix":
        return None
    try:
        descriptors = load_program()
    except ResourceFault as fault:
        failure = fault

        def fail(_window: int) -> dict[str, int]:
            raise failure

        return fail
    return lambda _window: descriptors


def open_redirector(wanted: Wanted, folder: Path, load: Callable[[int], dict[str, int]] | None = None) -> Redirector:
    """Open the redirector of a node; `folder` is the node's own, sockets are made in ``folder/redirect``.

    ``auto`` takes the sockmap where this machine allows it (found out by loading it and sending a record through),
    else AF_UNIX, and `why` says what is missing.  `load` is what `preload` returned.  Raise `ResourceFault` if what is
    wanted is impossible.
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
        return SockmapRedirector(load=load)
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
