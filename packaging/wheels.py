"""Builds what is published, into dist/: the source archive, and from it a wheel for each machine, by `make wheels`.

The compiled parts include nothing of Python's, so one wheel (abi3) is good for all CPythons from 3.11 on.  The C
compiler is the one of the package `ziglang`, which links against the C library of any release: the wheels need nothing
newer than glibc 2.17, the manylinux2014 of all tools.  auditwheel judges that, and names them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
MACHINES = ("x86_64", "aarch64")
GLIBC = "2.17"
COMPILED = {"lifl/rules/_fold.abi3.so", "lifl/shm/_ingest_check.abi3.so", "lifl/tls/_records.abi3.so"}


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> None:
    """Run a command of this interpreter's modules; end with its output when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=cwd,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n`{' '.join(map(str, command))}` ended with {done.returncode}")


def source_archive() -> Path:
    """Make the archive out of a copy of what is tracked: all of that, and nothing else that lies in the tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    tracked = {name for name in listed.decode().split("\0") if (ROOT / name).is_file()}
    with tempfile.TemporaryDirectory() as folder:
        for name in tracked:
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, Path(folder) / name)
        run("build", "--no-isolation", "--sdist", "--outdir", DIST, folder)
    (found,) = DIST.glob("lifl-*.tar.gz")
    with tarfile.open(found) as file:
        missing = tracked - {name.partition("/")[2] for name in file.getnames()}
    if missing:
        raise SystemExit(f"{found.name} lacks {', '.join(sorted(missing))}: MANIFEST.in does not name them")
    return found


def wheel(archive: Path, machine: str) -> Path:
    """Make a wheel for a machine out of the archive alone.  End when a compiled part is missing or was not stripped."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
        (source,) = Path(folder).iterdir()
        compiler = f"{sys.executable} -m ziglang cc -target {machine}-linux-gnu.{GLIBC}"
        variables = {
            "CC": compiler,
            "LDSHARED": f"{compiler} -shared",
            "LDFLAGS": "-Wl,-s",
            "ZIG_GLOBAL_CACHE_DIR": f"{folder}/zig",
            "ZIG_LOCAL_CACHE_DIR": f"{folder}/zig",
        }
        built = Path(folder) / "built"
        option = f"--config-setting=--build-option=--plat-name=linux_{machine}"
        run("build", "--no-isolation", "--wheel", "--outdir", built, option, source, **variables)
        (made,) = built.glob("*.whl")
        with zipfile.ZipFile(made) as names:
            if missing := COMPILED - set(names.namelist()):
                raise SystemExit(f"{made.name} lacks {', '.join(sorted(missing))}: the compiler refused it")
        run("auditwheel", "repair", "--wheel-dir", DIST, made)  # for the oldest systems that it finds them good for
    (found,) = DIST.glob(f"lifl-*_{machine}.whl")
    if f"manylinux_{GLIBC.replace('.', '_')}_{machine}" not in found.name:
        raise SystemExit(f"{found.name} needs a newer C library than {GLIBC}")
    return found


def main() -> None:
    """Build all of it anew."""
    shutil.rmtree(DIST, ignore_errors=True)
    archive = source_archive()
    for path in (archive, *(wheel(archive, machine) for machine in MACHINES)):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
