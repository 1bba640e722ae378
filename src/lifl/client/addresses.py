"""What a trainer may give as the address of a node; what is none is refused at once, and never tried."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from lifl.core.config.values import can_be_host
from lifl.core.errors import LocalFault
from lifl.core.limits import PORT_MAX, SOCKET_PATH_BYTES_MAX

Node = str | os.PathLike[str]
FORMS = "HOST:PORT (also tcp://HOST:PORT), unix:PATH or the node's state folder"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HOST_AND_MORE = re.compile(r"[^/\s]+:[0-9]+/.*", re.DOTALL)


def understood(node: Node | Sequence[Node]) -> list[str]:
    """Return the addresses in `node`: one, a text of several with commas between them, or a sequence.

    Raise `LocalFault`, naming the one that cannot be an address.
    """
    if isinstance(node, str):
        given: list[object] = [part.strip() for part in node.split(",")]
    elif isinstance(node, os.PathLike):
        given = [node]
    elif isinstance(node, Sequence) and not isinstance(node, bytes | bytearray):
        given = list(node)
    else:
        raise LocalFault(f"node={node!r}: give an address, {FORMS}, or several of them")
    addresses = [_as_text(each) for each in given]
    if not addresses or not all(addresses):
        raise LocalFault(f"node={node!r}: give an address, or several with commas between them")
    for address in addresses:
        target(address)
    return addresses


def _as_text(given: object) -> str:
    if isinstance(given, os.PathLike):
        path = os.fsdecode(given)
        return path if os.sep in path else os.path.join(os.curdir, path)
    if not isinstance(given, str):
        raise LocalFault(f"the node's address {given!r} is a {type(given).__name__}; give {FORMS}")
    text = given.strip()
    if (found := _SCHEME.fullmatch(text)) is None:
        return text
    scheme, rest = found[1].lower(), found[2]
    if scheme == "tcp" and (address := rest.removesuffix("/")) and os.sep not in address:
        return address
    if scheme == "unix":
        return f"unix:{rest}"
    if scheme == "tcp":
        raise LocalFault(f"the node's address {text!r} is not tcp://HOST:PORT")
    raise LocalFault(f"the node's address {text!r}: clients do not speak {scheme} to a node; give {FORMS}")


def target(address: str) -> str | tuple[str, int]:
    """Return the path, or host and port, that an address names.  Raise `LocalFault` when it names neither."""
    path = address.removeprefix("unix:")
    if path != address or (os.sep in address and not _is_host_and_more(address)):
        path = os.path.expanduser(path)
        try:
            nbytes = len(os.fsencode(path))
        except UnicodeEncodeError as error:
            raise LocalFault(f"the node's address {address!r} can be no path: {error}") from error
        if "\0" in path:
            raise LocalFault(f"the node's address {address!r} can be no path: it has a zero byte")
        if not path or nbytes > SOCKET_PATH_BYTES_MAX:
            raise LocalFault(
                f"the node's address {address!r}: a socket's path has 1 to {SOCKET_PATH_BYTES_MAX} bytes, not {nbytes};"
                " use a state folder with a shorter path"
            )
        return path
    host, _, port = address.rpartition(":")
    bare = host.strip("[]")
    if not can_be_host(bare) or not (port.isascii() and port.isdigit()):
        raise LocalFault(f"the node's address {address!r} is neither HOST:PORT nor unix:PATH nor a state folder")
    if len(port) > len(str(PORT_MAX)) or not 1 <= int(port) <= PORT_MAX:
        raise LocalFault(f"the node's address {address!r}: a port is 1 to {PORT_MAX}, not {port}")
    return bare, int(port)


def _is_host_and_more(address: str) -> bool:
    """Return whether it looks like HOST:PORT with a path behind it, and no such file is there."""
    return _HOST_AND_MORE.fullmatch(address) is not None and not os.path.exists(address)
