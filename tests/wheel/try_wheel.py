"""Installs the wheel of dist/ into an empty environment under each Python that is here, and runs a job.

Nothing is compiled on the way (wheels only, and no compiler on the path), the account is not root, its home cannot be
written.  The same is done with what configs/install.sh installs, which then takes it away again.
"""

from __future__ import annotations

import argparse
import glob
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
MINORS = range(11, 15)
ACCOUNT = 12_345
"""What an account of a namespace of its own is called, that has no right beyond it."""
TIMEOUT_S = 600
DOES_A_JOB = """
import json, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file, save_file
from lifl import Client
from lifl.rules import native
from lifl.shm import ingest_check
from lifl.tls import compiled

folder = Path(sys.argv[1])
lifl = [str(Path(sys.executable).parent / "lifl")]
state = ["--state", str(folder / "state")]
assert native.load() is not None or not sys.argv[2], "the kernels of the wheel are not loaded"
save_file({"w": np.zeros(1000, np.float32)}, folder / "model.safetensors")
(folder / "job.toml").write_text(
    '[job]\\nname = "j"\\nrounds = 3\\n[model]\\npath = "model.safetensors"\\n[selection]\\nclients_per_round = 2\\n')
up = [*lifl, "up", "-d", "--json", "--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", *state]
info = json.loads(subprocess.check_output(up))
try:
    subprocess.check_call([*lifl, "submit", str(folder / "job.toml"), *state], stdout=subprocess.DEVNULL)

    def train(site):
        with Client(info["listen"][0], job="j", client=f"c{site}") as client:
            for round in client.rounds():
                round.submit({"w": round.model["w"] + site}, weight=1)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, (1, 3)))
    made = str(folder / "out.safetensors")
    subprocess.check_call([*lifl, "model", "j", "-o", made, *state], stdout=subprocess.DEVNULL)
    assert (load_file(made)["w"] == 6).all(), "three rounds of a mean of 1 and 3"
finally:
    subprocess.check_call([*lifl, "down", *state], stdout=subprocess.DEVNULL)
print("redirector", info["redirector"])
"""


def pythons() -> Iterator[str]:
    """One interpreter of each minor version that is here: on the path, or where pyenv keeps them."""
    for minor in MINORS:
        candidates = [
            shutil.which(f"python3.{minor}"),
            *glob.glob(f"{Path.home()}/.pyenv/versions/3.{minor}.*/bin/python"),
        ]
        for candidate in filter(None, candidates):
            version = [candidate, "-c", f"import sys, ensurepip; sys.exit(sys.version_info[:2] != (3, {minor}))"]
            if not subprocess.run(version, check=False, capture_output=True).returncode:
                yield candidate
                break


def as_somebody() -> list[str]:
    """What runs a command without rights, where this process has any."""
    if os.geteuid():
        return []
    return ["unshare", "--user", f"--map-user={ACCOUNT}", f"--map-group={ACCOUNT}", "--"]


@contextmanager
def folder() -> Iterator[Path]:
    """A folder with a short path, for sockets are made in it."""
    made = Path(tempfile.mkdtemp(prefix="lw-", dir="/tmp"))
    try:
        yield made
    finally:
        (made / "home").chmod(0o700)
        shutil.rmtree(made)


def do_a_job(python: Path, place: Path, compiled: bool) -> str:
    """Run a node and a job; return what it says.  End when something is wrong."""
    home, work = place / "home", Path(tempfile.mkdtemp(dir=place))
    home.mkdir(exist_ok=True)
    home.chmod(stat.S_IRUSR | stat.S_IXUSR)
    variables = {"HOME": str(home), "PATH": str(python.parent), "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
    command = [*as_somebody(), str(python), "-c", DOES_A_JOB, str(work), "compiled" if compiled else ""]
    unshare = shutil.which(command[0]) or command[0]
    done = subprocess.run(
        [unshare, *command[1:]], env=variables, cwd="/", capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    if done.returncode:
        log = work / "state/lifld.log"
        raise SystemExit(f"{done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}")
    assert not list(home.iterdir()), "something was written into a home that cannot be written"
    return done.stdout.strip()


def try_under(python: str, wheel: Path) -> None:
    """Install into an empty environment, with wheels only, and run a job."""
    with folder() as place:
        (place / "home").mkdir()
        subprocess.run([python, "-m", "venv", place / "venv"], check=True)
        inside = place / "venv/bin/python"
        pip = [inside, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary", ":all:", wheel]
        subprocess.run(pip, check=True)
        listed = subprocess.check_output([inside, "-m", "pip", "list", "--format=freeze"], text=True).split()
        packages = [line for line in listed if not line.startswith(("pip=", "setuptools=", "wheel=", "lifl="))]
        for name in ("configs/digits.toml", "configs/systemd/lifld.service", "examples/plain_client.py"):
            assert (place / "venv/share/lifl" / name).is_file(), f"{name} is not in the wheel"
        version = subprocess.check_output([inside, "--version"], text=True).strip()
        said = do_a_job(inside, place, compiled=True)
        print(f"{version}: installed, {len(packages)} packages beside it; node, job: {said}", flush=True)


def try_install_script(wheel: Path) -> None:
    """Install by the script below a folder, run a job there, remove it all."""
    with folder() as place:
        script, target = ROOT / "configs/install.sh", place / "root"
        (place / "home").mkdir()
        variables = os.environ | {"DESTDIR": str(target), "PYTHON": sys.executable}
        for _ in range(2):  # the second is an upgrade
            subprocess.run(["sh", script, wheel], env=variables, check=True, stdout=subprocess.DEVNULL)
        config = target / "etc/lifl/node.toml"
        config.write_text(config.read_text() + "# kept\n")
        subprocess.run(["sh", script, wheel], env=variables, check=True, stdout=subprocess.DEVNULL)
        assert config.read_text().endswith("# kept\n"), "an upgrade has written over the node's config"
        assert (target / "usr/local/bin/lifl").resolve() == (target / "opt/lifl/bin/lifl").resolve()
        said = do_a_job(target / "opt/lifl/bin/python", place, compiled=True)
        subprocess.run(["sh", script, "--uninstall"], env=variables, check=True, stdout=subprocess.DEVNULL)
        left = {str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()}
        assert left == {"etc/lifl/node.toml"}, f"left by --uninstall: {left}"
        subprocess.run(["sh", script, "--purge"], env=variables, check=True, stdout=subprocess.DEVNULL)
        left = {str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()}
        assert not left, f"left by --purge: {left}"
        print(f"configs/install.sh: installed twice, node, job: {said}; removed", flush=True)


def main() -> None:
    """Try the wheel for this machine under all Pythons, or one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="this interpreter alone")
    parser.add_argument("--wheel", type=Path, help="this wheel, in place of that in dist/")
    given = parser.parse_args()
    wheels = [given.wheel] if given.wheel else list((ROOT / "dist").glob(f"lifl-*_{platform.machine()}.whl"))
    if len(wheels) != 1:
        raise SystemExit("there is no wheel for this machine in dist/: make wheels")
    found = [given.python] if given.python else list(pythons())
    for python in found:
        try_under(python, wheels[0].resolve())
    try_install_script(wheels[0].resolve())
    print(f"{len(found) + 1} passed, 0 failed")


if __name__ == "__main__":
    main()
