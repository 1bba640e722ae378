"""Runs `bpf/load.py` as a one-shot child and takes the descriptors of the program and its maps from it.

Two interpreters are tried: this one, and the distribution's, to which the package `python3-bpfcc` belongs.  What a
machine lacks is found out by doing it; each failure becomes a text with its fix.  What compiler and verifier said is
logged at DEBUG and kept in `LoadFault.details`.
"""

from __future__ import annotations

import importlib.resources
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lifl.core.errors import ResourceFault

SYSTEM_PYTHON = "/usr/bin/python3"
LOAD_TIMEOUT_S = 60.0
DETAILS_CHARS_MAX = 8_000
_DESCRIPTORS_MAX = 8
_STATUS_BYTES_MAX = 65_536

_log = logging.getLogger(__name__)


class LoadFault(ResourceFault):
    """The program cannot run here.  `stage` is where it ended, `details` what compiler and verifier said."""

    def __init__(self, stage: str, text: str, details: str) -> None:
        super().__init__(text)
        self.stage = stage
        self.details = details


def package_folder() -> Path:
    """Return where `redirector.c`, `load.py` and `include/` are."""
    try:
        folder = Path(str(importlib.resources.files("lifl_bpf")))
    except ModuleNotFoundError:
        folder = Path("lifl_bpf")
    if not (folder / "redirector.c").is_file():
        raise LoadFault("find", "the package lifl_bpf is not installed; install lifl again (pip install .)", "")
    return folder


def load(defines: dict[str, int]) -> dict[str, int]:
    """Compile with `defines` as -D flags, load and attach.

    Return the descriptors, the caller's to close, by name: ``program``, ``sockets``, ``routes``, ``slots``,
    ``totals``.  Block for about half a second.  Raise `LoadFault`.
    """
    folder = package_folder()
    interpreters = dict.fromkeys([sys.executable, SYSTEM_PYTHON])
    status: dict[str, Any] = {}
    details = ""
    for interpreter in interpreters:
        if not interpreter or not os.access(interpreter, os.X_OK):
            continue
        status, descriptors, details = _run(interpreter, folder, defines)
        if details:
            _log.debug("redirector.load interpreter=%s output=%s", interpreter, details)
        if "descriptors" in status:
            return dict(zip(status["descriptors"], descriptors, strict=True))
        if status["stage"] != "import":
            break
    stage = status.get("stage", "import")
    raise LoadFault(stage, _advice(stage, status, details), details)


def _run(interpreter: str, folder: Path, defines: dict[str, int]) -> tuple[dict[str, Any], list[int], str]:
    """Return the child's answer, its descriptors, and the end of what it wrote to stderr."""
    request = {
        "source": str(folder / "redirector.c"),
        "headers": str(folder),
        "defines": defines,
        "parent": os.getpid(),
    }
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, tempfile.TemporaryFile() as noise:
        with theirs:
            child = subprocess.Popen(
                [interpreter, "-E", str(folder / "load.py"), str(theirs.fileno()), json.dumps(request)],
                cwd="/",  # the compiler returns to where it was started: it may not be kept out there
                stdin=subprocess.DEVNULL,
                stdout=noise,
                stderr=noise,
                pass_fds=[theirs.fileno()],
            )
        try:
            ours.settimeout(LOAD_TIMEOUT_S)
            answer, descriptors, _flags, _address = socket.recv_fds(ours, _STATUS_BYTES_MAX, _DESCRIPTORS_MAX)
        except TimeoutError:
            answer, descriptors = b"", []
            child.kill()
        finally:
            code = child.wait()
        noise.seek(0)
        details = noise.read().decode(errors="replace")[-DETAILS_CHARS_MAX:]
    if answer:
        return json.loads(answer), descriptors, details
    return {"stage": "run", "text": f"{interpreter} ended with {code}", "rights": []}, [], details


def _advice(stage: str, status: dict[str, Any], details: str) -> str:
    """Return what failed, and what to do."""
    text = str(status.get("text", ""))
    if stage == "import":
        return (
            f"iovisor's bcc is installed neither for {sys.executable} nor for {SYSTEM_PYTHON} ({text}); on Debian "
            "and Ubuntu: apt-get install python3-bpfcc (PyPI's package bcc is another thing)"
        )
    rights = status.get("rights", [])
    if rights or "Operation not permitted" in details + text:
        return (
            f"loading eBPF is not permitted here (missing: {', '.join(rights) or 'the right to call bpf(2)'}); run "
            "lifl up as root or with CAP_BPF and CAP_NET_ADMIN as ambient capabilities (a container needs them too, "
            "and a seccomp profile that allows bpf(2))"
        )
    last = next((line.strip() for line in reversed(details.splitlines()) if line.strip()), "no further output")
    fix = {
        "compile": "the kernel may lack CONFIG_BPF_SYSCALL or CONFIG_NET_SOCK_MSG, or bcc be older than 0.18",
        "load": "the kernel's verifier refuses the program; Linux 5.10 or newer is needed",
        "attach": "the kernel may lack CONFIG_NET_SOCK_MSG (sockmap)",
    }.get(stage, f"run it by hand to see more: {SYSTEM_PYTHON} -c 'import bcc'")
    return f"the eBPF program did not {stage}: {text} ({last}); {fix}"
