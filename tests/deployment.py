"""Checks what configs/ has for systemd, Kubernetes, Slurm and the shell, with the tools that are here.

Without a tool its part is left out, and said so.  Part of `make test-wheels`; tests/unit/test_deployment.py runs what
needs no other package than kubernetes-validate.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
UNITS = ("lifld.service", "lifld.socket")
VARIANTS = ("base", "ebpf")
EXPOSURE_MAX = 45
"""Tenths, by `systemd-analyze security`; a unit without any restriction has 96."""


def run(*command: str | Path) -> str:
    """What a command says; end with it when the command fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def units() -> str:
    """The units are right, and keep what they can from the node; the program that they name stands in for itself."""
    with tempfile.TemporaryDirectory() as folder:
        for name in UNITS:
            text = (CONFIGS / "systemd" / name).read_text().replace("/opt/lifl/bin/lifl", "/bin/true")
            (Path(folder) / name).write_text(text)
        said = run("systemd-analyze", "verify", "--man=no", *(Path(folder) / name for name in UNITS))
        if wrong := [line for line in said.splitlines() if "lifld" in line]:
            raise SystemExit("\n".join(wrong))
        unit = Path(folder) / UNITS[0]
        return run("systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", unit).splitlines()[-1]


def built_manifests(variant: str) -> str:
    """What `kubectl apply -k` hands to the cluster."""
    return run("kubectl", "kustomize", CONFIGS / "kubernetes" / variant)


def manifests() -> str:
    """Both variants are built, and fit the schemas of Kubernetes."""
    count = 0
    for variant in VARIANTS:
        built = built_manifests(variant)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(built)
            file.flush()
            validate(Path(file.name))
        count += built.count("\nkind: ")
    return f"{count} objects fit"


def validate(manifest: Path) -> None:
    """Compare a manifest with the schemas; end with what does not fit."""
    run(Path(sys.executable).parent / "kubernetes-validate", "--strict", manifest)


def scripts() -> str:
    """The shell reads them."""
    run("sh", "-n", CONFIGS / "install.sh")
    run("bash", "-n", CONFIGS / "slurm/site.sbatch")
    return "read"


def main() -> None:
    """Check all of it."""
    for name, tool, check in (
        ("systemd", "systemd-analyze", units),
        ("kubernetes", "kubectl", manifests),
        ("scripts", "bash", scripts),
    ):
        print(f"{name}: {check() if shutil.which(tool) else f'NOT CHECKED, there is no {tool}'}", flush=True)


if __name__ == "__main__":
    main()
