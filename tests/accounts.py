"""Other accounts of this machine, and an interpreter with LIFL that they can run."""

from __future__ import annotations

import atexit
import os
import shutil
import site
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

NOBODY = 54_321
"""A number that no account has."""
CANDIDATES = (sys.executable, "/usr/bin/python3")


@cache
def common_python() -> str | None:
    """An interpreter that any account can run, with what this one has installed; None: there is none.

    This one may lie where only root gets to.
    """
    if os.geteuid() != 0:
        return None
    for candidate in CANDIDATES:
        if _works(candidate):
            return candidate
    folder = Path(tempfile.mkdtemp(prefix="lifl-python-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder)
    folder.chmod(0o755)
    command = [CANDIDATES[-1], "-m", "venv", "--without-pip", folder]
    made = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)
    if made.returncode:
        return None
    version = "python{}.{}".format(*sys.version_info)
    packages = folder / "lib" / version / "site-packages"
    if not packages.is_dir():  # what is compiled is for another version
        return None
    lines = [f"import site; site.addsitedir({each!r})" for each in site.getsitepackages()]
    (packages / "tests.pth").write_text("\n".join(lines) + "\n")
    python = str(folder / "bin/python")
    return python if _works(python) else None


def _works(python: str) -> bool:
    command = [python, "-P", "-c", "import lifl_cli.main, lifl.node.daemon, lifl.worker.zygote, numpy"]
    try:
        done = subprocess.run(
            command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", check=False, capture_output=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
