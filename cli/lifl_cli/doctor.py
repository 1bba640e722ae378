"""`lifl doctor`: what this machine can and cannot do for a node, each point really tried.

A check returns findings; a finding that is not ok comes with the command that fixes it.  ``fail`` means
that a node cannot run, ``warn`` that it runs with less: a redirector without eBPF, slower memory.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from lifl.core.config.node import NodeConfig
from lifl.core.config.values import split_address
from lifl.core.errors import LiflError, ResourceFault
from lifl.core.limits import ARENA_BYTES_MIN
from lifl_cli.daemon_client import DaemonClient
from lifl_cli.options import state_option
from lifl_cli.output import tell
from lifl_cli.render.figures import folded, size_text

SHM = Path("/dev/shm")
SHMEM_HUGE = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
FREE_STATE_BYTES = 1 << 28


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is what to do when `level` is not ``ok``."""

    level: Literal["ok", "warn", "fail"]
    what: str
    text: str
    fix: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--repair", is_flag=True, help="Set aside what keeps a node from starting on the state folder.")
@state_option
def doctor(as_json: bool, repair: bool, state_dir: Path) -> None:
    """Say what this machine can and cannot do, and how to fix it.

    With --repair nothing else is looked at: it says what it would set aside in the state folder, then does it.
    """
    if repair:
        from lifl_cli.repair import repair as repair_folder

        repair_folder(state_dir)
        return
    findings = [finding for check in CHECKS for finding in check(state_dir)]
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.level]
            level = f"{finding.level:<4}"
            line = folded(f"{level}  {finding.what:<16} {finding.text}", shutil.get_terminal_size().columns, 6)
            click.echo("\n".join(line).replace(level, click.style(level, fg=colour), 1))
            if finding.fix:
                tell(f"{'':<22} -> {finding.fix}", 6)
    sys.exit(1 if any(finding.level == "fail" for finding in findings) else 0)


def _python(_state_dir: Path) -> Iterator[Finding]:
    text = f"{platform.python_version()} at {sys.executable}, Linux {platform.release()}"
    fine = sys.version_info >= (3, 11)
    yield Finding(
        "ok" if fine else "fail", "python", text, "" if fine else "apt-get install python3.11 python3.11-venv"
    )


def _shared_memory(_state_dir: Path) -> Iterator[Finding]:
    wanted = NodeConfig().arena_bytes
    try:
        usage = shutil.disk_usage(SHM)
    except OSError as error:
        yield Finding("fail", "shared memory", f"{SHM}: {error.strerror}", f"mount -t tmpfs tmpfs {SHM}")
        return
    text = f"{SHM}: {size_text(usage.free)} free of {size_text(usage.total)}"
    if usage.free >= wanted:
        yield Finding("ok", "shared memory", text)
    else:
        half = size_text(usage.free // 2).replace(" ", "")
        yield Finding(
            "warn",
            "shared memory",
            f"{text}; the default arena takes {size_text(wanted)}",
            f"mount -o remount,size=2G {SHM}   (docker: --shm-size=2g), or lifl up --arena-bytes {half}",
        )


def _memory_limit(_state_dir: Path) -> Iterator[Finding]:
    """Compare what the container allows with what a node takes by default."""
    from lifl.node import cgroups, machine

    limit, wanted = cgroups.memory_limit(), NodeConfig().arena_bytes
    if limit is None:
        yield Finding("ok", "memory limit", "none (no control group limits the memory)")
        return
    text = f"{size_text(limit.limit_bytes)} ({limit.where}); the default arena takes {size_text(wanted)}"
    left = limit.limit_bytes - machine.PROCESSES_BYTES
    if wanted <= left:
        yield Finding("ok", "memory limit", text)
    elif left >= ARENA_BYTES_MIN:
        fix = f"raise the limit, or lifl up --arena-bytes {size_text(left >> 20 << 20).replace(' ', '')}"
        yield Finding("warn", "memory limit", text, fix)
    else:
        yield Finding("fail", "memory limit", text, "raise the limit (docker: --memory=2g)")


def _huge_pages(_state_dir: Path) -> Iterator[Finding]:
    from lifl.shm.mapping import HUGE_PAGE_BYTES, Mapped, collapse, populate

    try:
        fd = os.memfd_create("lifl-doctor")  # the same kind of memory as the arena
        try:
            os.posix_fallocate(fd, 0, HUGE_PAGE_BYTES)
            view = Mapped(fd, HUGE_PAGE_BYTES).view
            populate(view)
            code = collapse(view)
        finally:
            os.close(fd)
    except (OSError, ResourceFault) as error:
        yield Finding("warn", "huge pages", f"could not be tried: {error}", "free memory, then try again")
        return
    if not code:
        yield Finding("ok", "huge pages", "the arena gets pages of 2 MiB")
    elif code == errno.ENOMEM:
        text = "no 2 MiB of memory in a row are free now; the first touch of each page costs more"
        yield Finding("warn", "huge pages", text, "echo 1 > /proc/sys/vm/compact_memory")
    else:
        text = f"refused for shared memory ({os.strerror(code)}); the first touch of each page costs more"
        yield Finding("warn", "huge pages", text, f"echo advise > {SHMEM_HUGE}   (or Linux 6.1 or newer)")


def _limits(_state_dir: Path) -> Iterator[Finding]:
    from lifl.node import descriptors, machine

    config, hard = NodeConfig(), descriptors.hard_limit()
    needed = descriptors.node_needs(config, machine.workers_max(config))
    connections = descriptors.connections_max(config)
    text = f"a node with {connections} connections needs {needed}"
    if connections < descriptors.CONNECTIONS and hard is not None and hard >= needed:
        whole = descriptors.gateway_needs(descriptors.CONNECTIONS)
        said = f"{text}; {descriptors.CONNECTIONS} would need {whole}, a process here may have {hard}"
        yield Finding("warn", "open files", said, f"ulimit -Hn {whole} (as root; LimitNOFILE= in a unit file)")
    elif hard is None or hard >= needed:
        allowed = "as many as it likes" if hard is None else str(hard)
        yield Finding("ok", "open files", f"{text}, a process here may have {allowed}")
    else:
        fix = f"ulimit -Hn {needed} (as root; LimitNOFILE= in a unit file)"
        yield Finding("fail", "open files", f"{text}, a process here may have at most {hard} (the hard limit)", fix)
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    shown = "unlimited" if soft == resource.RLIM_INFINITY else size_text(soft)
    yield Finding("ok", "locked memory", f"limit {shown} (kernels before 5.11 charge eBPF maps to it)")


def _capabilities(_state_dir: Path) -> Iterator[Finding]:
    effective = next(
        int(line.split()[1], 16)
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("CapEff")
    )
    names = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_BPF": 39}
    held = [name for name, bit in names.items() if effective >> bit & 1]
    if "CAP_NET_ADMIN" in held and ("CAP_BPF" in held or "CAP_SYS_ADMIN" in held):
        yield Finding("ok", "capabilities", ", ".join(held))
    else:
        yield Finding(
            "warn",
            "capabilities",
            f"{', '.join(held) or 'none'} of CAP_BPF and CAP_NET_ADMIN, which loading eBPF needs",
            "start `lifl up` as root, or with both capabilities (systemd: AmbientCapabilities=)",
        )


def _bcc(_state_dir: Path) -> Iterator[Finding]:
    from lifl.redirect.sockmap.loader import SYSTEM_PYTHON

    for interpreter in filter(shutil.which, dict.fromkeys((sys.executable, SYSTEM_PYTHON))):
        done = subprocess.run(
            [interpreter, "-c", "import bcc; bcc.BPF.SK_MSG; print(bcc.__version__)"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            yield Finding("ok", "bcc", f"{done.stdout.strip()}, for {interpreter}")
            return
    yield Finding("warn", "bcc", "no interpreter here can import iovisor's bcc", "apt-get install python3-bpfcc")


def _redirector(_state_dir: Path) -> Iterator[Finding]:
    """Load and attach the program and send a record through it, as `lifld` would."""
    from lifl.redirect import open_redirector

    with tempfile.TemporaryDirectory(prefix="lifl-") as folder:
        redirector = open_redirector("auto", Path(folder))
        name, why = redirector.name, redirector.why
        redirector.close()
    if name == "sockmap":
        yield Finding("ok", "redirector", "sockmap: the eBPF program was loaded and carried a record")
    else:
        yield Finding("warn", "redirector", f"{name}, not eBPF", why)


def _capacity(_state_dir: Path) -> Iterator[Finding]:
    # Before NumPy is loaded: one fold is to take one core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from lifl.node import cgroups, machine
    from lifl.rules import calibration

    found = calibration.capacity(machine.workers_max(NodeConfig()))
    quota = cgroups.cpu_quota()
    of = f" (a quota of {quota.cores:g}: {quota.where})" if quota is not None else ""
    yield Finding("ok", "capacity", f"{found:g} updates folded at a time on {machine.cores()} cores{of}, measured now")


def _loopback(_state_dir: Path) -> Iterator[Finding]:
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            with socket.create_connection(listener.getsockname(), timeout=2):
                yield Finding("ok", "loopback", "127.0.0.1 answers")
    except OSError as error:
        yield Finding("fail", "loopback", f"127.0.0.1: {error.strerror or error}", "ip link set lo up")


def _port(state_dir: Path) -> Iterator[Finding]:
    address = NodeConfig().listen
    if _runs(state_dir):
        yield Finding("ok", "port", "lifld runs with this state folder")
        return
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(split_address(address))
            yield Finding("ok", "port", f"{address} is free")
    except OSError as error:
        yield Finding("warn", "port", f"{address}: {error.strerror}", "lifl up --listen 127.0.0.1:0   (any free port)")


def _state_folder(state_dir: Path) -> Iterator[Finding]:
    folder = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            "fail",
            "state folder",
            f"{state_dir}: {folder} is not writable",
            "lifl up --state DIR, or chown it",
        )
        return
    free = shutil.disk_usage(folder).free
    level: Literal["ok", "warn"] = "ok" if free >= FREE_STATE_BYTES else "warn"
    fix = "" if level == "ok" else "free some disk space: each committed model is written there"
    yield Finding(level, "state folder", f"{state_dir}: writable, {size_text(free)} free", fix)


def _contents(state_dir: Path) -> Iterator[Finding]:
    """Look for what would keep a node from starting on the state folder, or a job from going on."""
    from lifl_cli.repair import damages

    if not state_dir.is_dir() or _runs(state_dir):
        return
    try:
        for damage in damages(state_dir):
            command = f"lifl doctor --repair --state {state_dir}   ({damage.would})"
            yield Finding("fail", "state folder", damage.what, command)
    except LiflError as error:
        yield Finding("warn", "state folder", str(error), "see to it, then try again")


def _identities(state_dir: Path) -> Iterator[Finding]:
    """Look at certificates, their files, and the clock."""
    from lifl_cli.identities import look

    for found in look(state_dir):
        yield Finding(*found)


def _store(state_dir: Path) -> Iterator[Finding]:
    """Look at the store that a running node shares with its cluster."""
    from lifl_cli.store import look

    for found in look(state_dir):
        yield Finding(*found)


def _segments(_state_dir: Path) -> Iterator[Finding]:
    """Find segments that no process maps: a killed `lifld` left them for the next one on its state folder."""
    names = {path.name for path in SHM.glob("lifl-*")}
    mapped: set[str] = set()
    unseen: set[int] = set()  # accounts with processes of LIFL that this one may not look at
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            maps = (folder / "maps").read_text()
        except PermissionError:
            with suppress(OSError):
                if b"lifl" in (folder / "cmdline").read_bytes():
                    unseen.add(folder.stat().st_uid)
        except OSError:
            continue  # it has ended
        else:
            mapped |= {name for name in names if f"{SHM}/{name}" in maps}
    arenas = {name.partition(".")[0] for name in names}  # a job's segment has a point and more behind the arena's name
    used = {name.partition(".")[0] for name in mapped} | {name for name in arenas if _is_locked(SHM / name)}
    for name in sorted(arenas - used):
        try:
            held = [path.stat() for path in SHM.glob(f"{name}*") if path.name.partition(".")[0] == name]
        except FileNotFoundError:
            held = []
        if not held:
            continue  # it has ended meanwhile
        about, size = held[0], size_text(sum(each.st_blocks * 512 for each in held))
        if about.st_uid in unseen or os.geteuid() not in (0, about.st_uid):
            text = f"{SHM / name}: {size} of user {about.st_uid}; this account cannot see who uses it"
            yield Finding("warn", "shared segment", text, f"lifl doctor as user {about.st_uid}, or as root")
            continue
        yield Finding(
            "warn",
            "orphan segment",
            f"{SHM / name}: {size} that no process here uses",
            f"`lifl up` with its state folder goes on from it; if that is gone: rm {SHM / name}*",
        )
    if not arenas - used:
        yield Finding("ok", "orphan segments", f"none in {SHM}")


def _is_locked(segment: Path) -> bool:
    """Return whether a `lifld` holds the segment, as its lock says; of another user's nothing is said.

    A lock that is taken to ask could be in the way of a start.
    """
    try:
        about = segment.stat()
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    place = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    return os.geteuid() in (0, about.st_uid) and any("FLOCK" in line and place in line.split() for line in locks)


def _runs(state_dir: Path) -> bool:
    try:
        with DaemonClient(state_dir):
            return True
    except ResourceFault:
        return False


def _boxes(state_dir: Path) -> Iterator[Finding]:
    """Look at what the processes of a running node have given up."""
    from lifl_cli.boxes import boxes

    for name, text, missing in boxes(state_dir):
        yield Finding("warn" if missing else "ok", name, text, missing)


def _kernel(_state_dir: Path) -> Iterator[Finding]:
    """Ask another process, because it loads NumPy."""
    program = "from lifl.rules.kernels import COMPILED; print(COMPILED is not None)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    if done.stdout.strip() == "True":
        yield Finding("ok", "fold kernel", "compiled")
        return
    why = done.stderr.strip().splitlines()[-1:] or ["no C compiler was there when LIFL was installed"]
    text = f"NumPy's, slower for few updates at a time and for float16, bfloat16 and integers ({why[0]})"
    yield Finding("warn", "fold kernel", text, "apt-get install gcc, then install LIFL again (pip install -e .)")


def _tls(_state_dir: Path) -> Iterator[Finding]:
    """Tell what moves bodies over TLS, and whether the kernel could."""
    import ssl

    from lifl.tls import records
    from lifl.tls.kernel_tls import refusal

    version = " ".join(ssl.OPENSSL_VERSION.split()[:2])
    if records.COMPILED is not None:
        yield Finding("ok", "TLS records", f"compiled, over {version}")
    else:
        text = f"Python's ssl ({version}), which takes more CPU for each byte: the compiled part was not built, or does"
        fix = "apt-get install gcc, then install LIFL again (pip install -e .)"
        yield Finding("warn", "TLS records", f"{text} not fit this Python", fix)
    why = refusal()
    yield Finding("ok", "kernel TLS", f"this kernel has none ({why})" if why else "this kernel has it; it is not used")


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (
    _python,
    _shared_memory,
    _memory_limit,
    _huge_pages,
    _limits,
    _capabilities,
    _bcc,
    _redirector,
    _kernel,
    _tls,
    _capacity,
    _loopback,
    _port,
    _state_folder,
    _contents,
    _identities,
    _store,
    _segments,
    _boxes,
)
