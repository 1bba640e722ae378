"""`lifl support-bundle`: what somebody needs to help, in one zip file, without secrets.

No key, cookie, token, model or update is read into it; what a log or a path may have of such is blotted out (`blot`).
"""

from __future__ import annotations

import json
import os
import platform
import re
import stat
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from lifl.core.errors import LiflError, ResourceFault
from lifl.core.limits import BUNDLE_FILE_BYTES_MAX, BUNDLE_ROWS_MAX
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did
from lifl_cli.render.figures import printable, printable_lines
from lifl_cli.state import LOG_FILE, absolute

BLOT = "[blotted out]"
SECRETS = (
    re.compile(r"LIFLB?1[0-9A-Za-z:._-]{8,}"),  # the line of a token, also half of one
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),  # NAME:PASSWORD of an address
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?i)(?:password|passwd|secret|credential|api[_-]?key|authorization)[\"']?\s*[=:]\s*\S+"),
)
PROC = ("meminfo", "loadavg", "version", "cgroups", "self/cgroup", "self/limits", "sys/net/unix/max_dgram_qlen")
KEPT_OUT = ("options", "config")
"""Of what the node says: texts of its users' own."""
PACKAGES = ("numpy", "msgpack", "msgspec", "uvloop", "posix-ipc", "psutil", "rich", "click", "cryptography")
ABOUT = """What is in here: versions, doctor's findings, what the state folder has (names and sizes, no contents), the
node's log, its jobs, and what the kernel says of the machine. Names of jobs, clients and hosts
are in it; keys, cookies, tokens, models, updates and jobs' options are not.
"""


@click.command("support-bundle")
@click.option("-o", "--output", default="lifl-support.zip", show_default=True, metavar="FILE", help="Where to.")
@json_option
@state_option
def support_bundle(output: str, as_json: bool, state_dir: Path) -> None:
    """Write what somebody needs to help to one file, without secrets.

    It is a zip file; the node may be up or down.
    """
    target = absolute(output)
    if target.exists():
        raise click.ClickException(f"{target} is there already: choose another name, or remove it")
    secrets = known_secrets(state_dir)
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ResourceFault(f"{target} cannot be written: {error.strerror}; name another file with -o") from error
    try:
        with os.fdopen(fd, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle:
            for name, make in PARTS.items():
                for path, text in part(name, make, state_dir):
                    bundle.writestr(path, blot(text, secrets))
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    shown = json.dumps({"file": str(target)}) if as_json else None
    did(f"{target}: look into it before you hand it on", shown)


def part(name: str, make: Callable[[Path], Iterator[tuple[str, str]]], state_dir: Path) -> Iterator[tuple[str, str]]:
    """Yield the files of a part; in the place of one that cannot be made, why."""
    try:
        yield from make(state_dir)
    except (LiflError, OSError, ValueError) as error:
        yield f"{name}.missing.txt", f"{type(error).__name__}: {error}\n"


def known_secrets(state_dir: Path) -> list[str]:
    """Return what the state folder has that must not be in the bundle, as it might stand in a text."""
    try:
        cookie = end_of(state_dir / "cookie")
    except OSError:
        return []
    return [text for text in (cookie.hex(), cookie.decode("latin-1").strip()) if text]


def end_of(path: Path) -> bytes:
    """Return the last bytes of a file, and nothing of what is none: a link, or a pipe, may lead anywhere, or nowhere.

    Raise `OSError`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return b""
        file.seek(max(found.st_size - BUNDLE_FILE_BYTES_MAX, 0))
        return file.read(BUNDLE_FILE_BYTES_MAX)


def blot(text: str, secrets: list[str]) -> str:
    """Return a text as it may be shown, without what is secret, or looks as if it were."""
    for secret in secrets:
        text = text.replace(secret, BLOT)
    for pattern in SECRETS:
        text = pattern.sub(BLOT, text)
    return printable_lines(text)


def _about(state_dir: Path) -> Iterator[tuple[str, str]]:
    versions = {"lifl": metadata.version("lifl"), "python": sys.version}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    about = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "state_dir": str(state_dir),
        "versions": versions,
    }
    yield "README.txt", ABOUT
    yield "about.json", json.dumps(about, indent=2)


def _doctor(state_dir: Path) -> Iterator[tuple[str, str]]:
    from lifl_cli.doctor import CHECKS

    findings = [asdict(finding) for check in CHECKS for finding in check(state_dir)]
    yield "doctor.json", json.dumps(findings, indent=2)


def _state_folder(state_dir: Path) -> Iterator[tuple[str, str]]:
    lines = []
    for path in sorted(state_dir.rglob("*"))[:BUNDLE_ROWS_MAX]:
        found = path.lstat()
        changed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.st_mtime))
        lines.append(
            f"{stat.filemode(found.st_mode)} {found.st_uid:>6} {found.st_size:>12} {changed} {printable(path)}"
        )
    yield "state-folder.txt", "\n".join(lines) + "\n"


def _logs(state_dir: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(state_dir.glob(f"{LOG_FILE}*")):
        if not path.is_symlink():
            yield f"log/{printable(path.name)}", end_of(path).decode(errors="replace")


def _node(state_dir: Path) -> Iterator[tuple[str, str]]:
    from lifl.core.protocol.cli import ListJobs, ListNodes, Snapshot
    from lifl_cli.daemon_client import DaemonClient

    with DaemonClient(state_dir) as daemon:
        for name, request in (("snapshot", Snapshot()), ("jobs", ListJobs()), ("nodes", ListNodes())):
            yield f"node/{name}.json", json.dumps(without_options(daemon.ask(request)), indent=2)
        pids = [daemon.lifld_pid]
    for pid in filter(None, pids):
        for name in ("status", "limits", "cgroup"):
            yield f"node/lifld-{name}.txt", Path(f"/proc/{pid}/{name}").read_text()


def without_options(value: Any) -> Any:
    """Return what the node said without its users' own options."""
    if isinstance(value, dict):
        return {key: BLOT if key in KEPT_OUT else without_options(below) for key, below in value.items()}
    return [without_options(below) for below in value] if isinstance(value, list | tuple) else value


def _machine(_state_dir: Path) -> Iterator[tuple[str, str]]:
    for name in PROC:
        path = Path("/proc") / name
        if path.exists():
            yield f"proc/{name.replace('/', '-')}.txt", path.read_text()
    yield (
        "proc/shm.txt",
        "".join(f"{printable(path.name)} {path.lstat().st_size}\n" for path in sorted(Path("/dev/shm").glob("*"))),
    )


PARTS: dict[str, Callable[[Path], Iterator[tuple[str, str]]]] = {
    "about": _about,
    "doctor": _doctor,
    "state-folder": _state_folder,
    "log": _logs,
    "node": _node,
    "machine": _machine,
}
