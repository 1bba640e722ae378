"""Skipped tests: counted by their reason, and refused where the reason does not hold.

A test that is skipped is not tested, and nobody reads why.  So each reason that a test may give stands in one table,
with a check whether it holds on this machine.  A run that is to be complete (`LIFL_OWN_MACHINE=1`, as in `.ci/run`, or
`CI=true`) fails when a test was skipped for a reason that does not hold, or that is not in the table.
"""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import leaks

SLOW_TOO = "LIFL_SLOW_TOO"
"""The variable by which `make test-integrations` asks for what needs no large library, and takes long."""


def is_no_root() -> bool:
    """Rights cannot be given up, nor namespaces made."""
    return os.geteuid() != 0


@cache
def has_no_sockmap() -> bool:
    """The redirector in the kernel cannot be opened."""
    from lifl.core.errors import ResourceFault
    from lifl.redirect import open_redirector

    try:
        with tempfile.TemporaryDirectory() as folder:
            open_redirector("sockmap", Path(folder)).close()
    except ResourceFault:
        return True
    return False


def has_no_namespaces() -> bool:
    """A cluster on one machine cannot be made."""
    from lifl.examples.netns import why_not

    return bool(why_not())


def has_few_descriptors() -> bool:
    """The limit of open files is lower than the redirector's slots need."""
    from lifl.core.ids import SLOTS_MAX

    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4 * SLOTS_MAX


def has_no_mounts() -> bool:
    """No file system can be mounted in a namespace of a test's own."""
    if os.geteuid() or shutil.which("unshare") is None:
        return True
    return subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode != 0


def has_no_memory_groups() -> bool:
    """No control group of version 1 can be made that limits memory."""
    return os.geteuid() != 0 or not os.access("/sys/fs/cgroup/memory/memory.limit_in_bytes", os.W_OK)


def has_no_huge_pages() -> bool:
    """The kernel refuses huge pages for a segment of one chunk."""
    from lifl.shm.owned_arena import OwnedArena
    from lifl.shm.prefault import CHUNK_BYTES, Prefault

    arena = OwnedArena.create(f"/lifl-test-{os.getpid()}-skips", 2 * CHUNK_BYTES, 1, 8)
    try:
        populating = Prefault(arena)
        populating.wait(60.0)
        return bool(populating.refused)
    finally:
        arena.close(unlink=True)


def has_no_compiler() -> bool:
    """What is compiled at installation could not be."""
    return not any(map(shutil.which, ("cc", "gcc", "clang")))


def has_no_etcd() -> bool:
    """Debian's etcd-server is not there, or not the client's library."""
    from etcd_servers import why_not

    return bool(why_not())


def has_no_sklearn() -> bool:
    """The examples' data is not installed."""
    return importlib.util.find_spec("sklearn") is None


def has_no_atheris() -> bool:
    """What fuzzing is guided by is not installed: it has no build for every Python."""
    return importlib.util.find_spec("atheris") is None


def has_no_torch() -> bool:
    """What `make test-integrations` installs is not there."""
    return importlib.util.find_spec("torch") is None


def has_no_peft() -> bool:
    """What `make test-integrations` installs is not there."""
    return importlib.util.find_spec("transformers") is None or importlib.util.find_spec("peft") is None


def has_no_lightning() -> bool:
    """What `make test-integrations` installs is not there."""
    return importlib.util.find_spec("lightning") is None


def has_no_jax() -> bool:
    """What `make test-integrations` installs is not there."""
    return importlib.util.find_spec("jax") is None


def has_no_schemathesis() -> bool:
    """What `make test-integrations` installs is not there."""
    return importlib.util.find_spec("schemathesis") is None


AXE = Path(__file__).parents[1] / ".venv/integrations/axe/node_modules/axe-core/axe.min.js"
"""What judges the page, where `make test-integrations` puts it."""


def has_no_axe() -> bool:
    """What `make test-integrations` installs is not there."""
    return not AXE.exists()


def has_no_chromium() -> bool:
    """There is no browser to look at the page with."""
    import chromium

    return chromium.found() is None


def has_no_flwr() -> bool:
    """What `make test-integrations` installs is not there."""
    return importlib.util.find_spec("flwr") is None


def has_no_trackers() -> bool:
    """What `make test-integrations` installs is not there."""
    names = ("mlflow", "tensorboard", "wandb", "opentelemetry.sdk", "matplotlib")
    return not all(importlib.util.find_spec(name.partition(".")[0]) for name in names)


def has_no_nvflare() -> bool:
    """What `make test-integrations` installs is not there."""
    return importlib.util.find_spec("nvflare") is None


def has_no_moto() -> bool:
    """What `make test-integrations` installs is not there."""
    return importlib.util.find_spec("boto3") is None


def has_no_ray() -> bool:
    """What `make test-integrations` installs is not there."""
    return importlib.util.find_spec("ray") is None


def has_no_prometheus() -> bool:
    """Debian's prometheus is not there."""
    return shutil.which("promtool") is None or shutil.which("prometheus") is None


def has_no_systemd_analyze() -> bool:
    """The judge of units is not there."""
    return shutil.which("systemd-analyze") is None


def has_no_kubectl() -> bool:
    """The builder of manifests is not there."""
    return shutil.which("kubectl") is None


def has_no_kubernetes_schemas() -> bool:
    """What `make setup` fetches to check manifests with could not be fetched."""
    return has_no_kubectl() or importlib.util.find_spec("kubernetes_validate") is None


def leaves_out_slow() -> bool:
    """This is no run of `make test-integrations`."""
    return not os.environ.get(SLOW_TOO)


def has_no_filter() -> bool:
    """The numbers of this machine's system calls are not known to the box."""
    from lifl.confine import seccomp

    return not seccomp.program(seccomp.always("ptrace"))


def has_no_landlock() -> bool:
    """The kernel has no Landlock, or it is switched off."""
    from lifl.confine import landlock

    return not landlock.version()


def has_no_common_python() -> bool:
    """No interpreter can be made that another account can run, with what LIFL needs."""
    from accounts import common_python

    return common_python() is None


ALLOWED: dict[str, Callable[[], bool]] = {
    r"no memory group": has_no_memory_groups,
    r"needs root|only root can|need root": is_no_root,
    r"redirector cannot run on this machine|sockmap cannot run on this machine": has_no_sockmap,
    r"needs namespaces": has_no_namespaces,
    r"limit of open files": has_few_descriptors,
    r"right to mount": has_no_mounts,
    r"huge pages of shared memory": has_no_huge_pages,
    r"needs Landlock": has_no_landlock,
    r"other accounts can run": has_no_common_python,
    r"no C compiler|no compiled kernel": has_no_compiler,
    r"atheris": has_no_atheris,
    r"scikit-learn": has_no_sklearn,
    r"needs etcd": has_no_etcd,
    r"make test-integrations installs torch": has_no_torch,
    r"make test-integrations installs (transformers|peft)": has_no_peft,
    r"make test-integrations installs lightning": has_no_lightning,
    r"make test-integrations installs jax": has_no_jax,
    r"make test-integrations installs flwr": has_no_flwr,
    r"make test-integrations installs axe-core": has_no_axe,
    r"make test-integrations installs ray": has_no_ray,
    r"there is no Chromium": has_no_chromium,
    r"make test-integrations installs schemathesis": has_no_schemathesis,
    r"make test-integrations installs nvflare": has_no_nvflare,
    r"make test-integrations installs s3fs": has_no_moto,
    r"needs promtool|needs prometheus": has_no_prometheus,
    r"make test-integrations installs (mlflow|tensorboard|wandb|opentelemetry|matplotlib)": has_no_trackers,
    r"no filter for this machine": has_no_filter,
    r"needs systemd-analyze": has_no_systemd_analyze,
    r"needs kubectl$": has_no_kubectl,
    r"needs kubectl and kubernetes-validate": has_no_kubernetes_schemas,
    r"^make test-integrations runs it$": leaves_out_slow,
}
"""Why a test may be skipped, and whether that is so here."""


def must_be_complete() -> bool:
    """Whether this run may leave out only what cannot be tested here."""
    return bool(os.environ.get(leaks.OWN_MACHINE)) or os.environ.get("CI", "").lower() in ("1", "true")


def counted(reasons: Iterable[str]) -> Counter[str]:
    """How many tests were skipped for each reason."""
    return Counter(reason.removeprefix("Skipped: ") for reason in reasons)


def refused(reasons: Iterable[str]) -> list[str]:
    """Those of the reasons that do not hold on this machine, or that are not in the table, each once."""
    return [reason for reason in counted(reasons) if not _holds(reason)]


def _holds(reason: str) -> bool:
    return any(re.search(pattern, reason) and check() for pattern, check in ALLOWED.items())
