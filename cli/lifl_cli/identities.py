"""What `lifl doctor` looks at of identities: certificates of node and account, their files, and the clock."""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from lifl.core.errors import LiflError, ResourceFault
from lifl.core.limits import CLOCK_SKEW_S
from lifl_cli.render.figures import seconds_text, time_text

SKEW_WARN_S = 5.0
LATE = 0.25
"""From this part of its time on a certificate that was not renewed is warned of: it renews when a half is left."""


class Looked(NamedTuple):
    """One line of the report, as `doctor.Finding`."""

    level: Literal["ok", "warn", "fail"]
    what: str
    text: str
    fix: str = ""


def look(state_dir: Path) -> Iterator[Looked]:
    """Yield what is to be said of the identities of the node and of this account."""
    from lifl.tls.folder import IDENTITIES, VARIABLE, node_folder

    node, authority = node_folder(state_dir), state_dir / "authority.pem"
    yield from _authority(authority)
    again = "lifl up --join HOST:PORT --token-file F"
    if authority.exists():  # nobody but this node could let it in
        again = "lifl cert renew, where lifld runs; else lifl up: the authority is here, and certifies the node again"
    yield from _identity(node, "identity", again)
    folders = [Path(os.environ[VARIABLE])] if os.environ.get(VARIABLE) else []
    try:
        folders += sorted(IDENTITIES.expanduser().iterdir())
    except (OSError, RuntimeError):  # none there, or no home
        pass
    for folder in folders:
        yield from _identity(folder, "own identity", "lifl enroll HOST:PORT --token-file F")
    yield from _clock([node, *folders])


def _identity(folder: Path, what: str, again: str) -> Iterator[Looked]:
    """Look at an identity folder; one that is not there is none."""
    from cryptography import x509

    from lifl.tls.folder import load
    from lifl.tls.unreadable import unreadable

    try:
        files = load(folder)
        if files is None:
            return
        found = x509.load_pem_x509_certificates(files.certificate.read_bytes())[0]
        begins, ends = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    except (LiflError, OSError) as error:
        yield Looked("fail", what, str(error), "see to it, or remove the folder and join again")
        return
    except unreadable():
        yield Looked("fail", what, f"{folder}: its certificate cannot be read", "remove the folder and join again")
        return
    now = time.time()
    text = f"{folder}: until {time_text(ends)}"
    if now >= ends:
        yield Looked("fail", what, f"{folder}: expired {time_text(ends)}", again)
    elif now < begins:
        yield Looked("fail", what, f"{folder}: not valid before {time_text(begins)}", "set this machine's clock")
    elif ends - now < LATE * (ends - begins):
        yield Looked("warn", what, f"{text}, and was not renewed", _renewing(what, folder))
    else:
        yield Looked("ok", what, text)


def _renewing(what: str, folder: Path) -> str:
    return "lifl cert renew   (lifl top says why it was not)" if what == "identity" else f"lifl cert renew {folder}"


def _authority(path: Path) -> Iterator[Looked]:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    from lifl.node.authority.authority_file import authority_time
    from lifl.node.authority.certificate_authority import ENDED_REMEDY
    from lifl.node.authority.health import AUTHORITY_ENDS_S

    try:
        begins, ends = authority_time(path)
    except ResourceFault:  # that is told by what looks at the files of the state folder
        begins, ends = 0.0, math.inf
    now = time.time()
    if mode & 0o077:
        text = f"{path} has mode {mode:04o}: whoever reads it can be anybody in the cluster"
        yield Looked("fail", "authority", text, f"chmod 600 {path}; if others have read it, make a new cluster")
    elif now >= ends:
        text = f"{path}: expired {time_text(ends)}; set this machine's clock, if that is what is wrong"
        yield Looked("fail", "authority", text, ENDED_REMEDY)
    elif now < begins:
        text = f"{path}: not valid before {time_text(begins)}: this machine's clock is behind, or was ahead then"
        yield Looked("fail", "authority", text, f"set this machine's clock; if it is right: {ENDED_REMEDY}")
    elif ends - now < AUTHORITY_ENDS_S:
        yield Looked("warn", "authority", f"{path}: until {time_text(ends)}", "lifl cert rotate")
    else:
        yield Looked("ok", "authority", f"{path}: of this cluster, its user's alone")


def _clock(folders: list[Path]) -> Iterator[Looked]:
    """Compare this machine's clock with that of the authority's node, for each that an identity came from."""
    from lifl.tls.enrolment import authority_at
    from lifl.tls.folder import home_of

    for home in dict.fromkeys(filter(None, map(home_of, folders))):
        before = time.time()
        try:
            there = authority_at(home).unix_s
        except LiflError as error:
            yield Looked("warn", "clock", f"cannot be compared: {error}", f"see whether the node at {home} is up")
            continue
        taken_s = time.time() - before
        skew = max(0.0, abs(there - before - taken_s / 2) - taken_s / 2)
        text = f"{seconds_text(skew)} apart from {home}" if skew else f"the same as at {home}"
        if skew >= CLOCK_SKEW_S:
            yield Looked("fail", "clock", f"{text}: certificates are not believed", "set the clock (NTP)")
        elif skew >= SKEW_WARN_S:
            yield Looked("warn", "clock", text, "set the clock (NTP)")
        else:
            yield Looked("ok", "clock", text)
