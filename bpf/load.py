"""The loader: compiles, loads and attaches `redirector.c`, hands the descriptors over, and ends.

It is run as a one-shot child of the daemon (`lifl.redirect.sockmap.loader`), for two reasons.  Only this process needs
rights (CAP_BPF and CAP_NET_ADMIN) and only this one carries the compiler (110 MB).  And iovisor's bcc is a module of
the distribution's own interpreter that a virtual environment does not see, so the child may run under another Python:
this file therefore imports the standard library and bcc, and nothing of LIFL.

bcc wants kernel headers only for its own preamble, none for this program, and many machines have none: `include/` holds
stubs that satisfy it.

Command line: the number of an inherited AF_UNIX socket, and a JSON object with `source` (the program), `headers` (the
folder that has the stubs' `include/`), `defines` (the program's -D flags) and `parent` (a pid).  The answer is one
message on the socket: JSON, with the descriptors named in `descriptors` by SCM_RIGHTS; or `stage` (where it failed:
import, compile, load, attach), `text`, and `rights`, the missing capabilities.  What the compiler and the verifier say
goes to stderr.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from typing import Any

PR_SET_PDEATHSIG = 1
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_BPF": 39}
CAP_SYS_ADMIN = 21
MAPS = ("sockets", "routes", "slots", "totals")


class Failure(Exception):
    """`stage` is import, compile, load or attach."""

    def __init__(self, stage: str, text: str) -> None:
        super().__init__(text)
        self.stage = stage


def die_with(parent: int) -> None:
    """Let this process end with its parent, even if that is gone already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def missing_rights() -> list[str]:
    """Return the capabilities that loading needs and this process does not have."""
    with open("/proc/self/status") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    if effective >> CAP_SYS_ADMIN & 1 and effective >> CAPABILITIES["CAP_NET_ADMIN"] & 1:
        return []
    return [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]


def import_bcc() -> Any:
    """Return iovisor's bcc; another package of that name exists, so what it offers is looked at."""
    try:
        import bcc
    except ImportError as error:
        raise Failure("import", str(error)) from error
    if not all(hasattr(bcc, name) for name in ("BPF", "BPFAttachType", "libbcc")):
        raise Failure("import", f"{bcc.__file__} is another package named bcc, not iovisor's")
    return bcc


def load(bcc: Any, source: str, defines: dict[str, int]) -> list[int]:
    """Return the descriptors of the program and of `MAPS`, in this order.

    bcc keeps them open until this process ends; it knows no table class for a SOCKHASH, hence libbcc by hand.
    """
    flags = [f"-D{name}={value}" for name, value in defines.items()]
    try:
        module = bcc.BPF(src_file=source.encode(), cflags=flags)
    except Exception as error:  # bcc raises no type of its own
        raise Failure("compile", str(error)) from error
    maps = [bcc.libbcc.lib.bpf_table_fd(module.module, name.encode()) for name in MAPS]
    try:
        function = module.load_func("redirect", bcc.BPF.SK_MSG)
    except Exception as error:
        raise Failure("load", str(error)) from error
    try:
        module.attach_func(function, maps[0], bcc.BPFAttachType.SK_MSG_VERDICT)
    except Exception as error:
        raise Failure("attach", str(error)) from error
    globals()["_kept"] = module  # its destructor would close the descriptors before they are sent
    return [function.fd, *maps]


def main() -> None:
    """Load as the command line says, and answer."""
    answer = socket.socket(fileno=int(sys.argv[1]))
    request = json.loads(sys.argv[2])
    die_with(request["parent"])
    os.environ["BCC_KERNEL_SOURCE"] = request["headers"]
    try:
        descriptors = load(import_bcc(), request["source"], request["defines"])
    except Failure as failure:
        status = {"stage": failure.stage, "text": str(failure), "rights": missing_rights()}
        socket.send_fds(answer, [json.dumps(status).encode()], [])
    else:
        status = {"descriptors": ["program", *MAPS]}
        socket.send_fds(answer, [json.dumps(status).encode()], descriptors)


if __name__ == "__main__":
    main()
