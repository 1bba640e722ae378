"""What docs/deploy.md tells to do on machines of the reader's: as much of it as can be done without them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import deployment
import pytest
from skips import has_no_kubectl, has_no_kubernetes_schemas, has_no_systemd_analyze

PAGE = Path(__file__).parents[2] / "docs/deploy.md"
SCRIPT = deployment.CONFIGS / "install.sh"
ADDED = re.compile(r"^( +)add:\n((?:\1- \w+\n)+)", re.MULTILINE)
"""The capabilities that a container is given, in a manifest as kubectl writes it."""

needs_kubectl = pytest.mark.skipif(has_no_kubectl(), reason="NOT TESTED: needs kubectl")


def added(manifest: str) -> set[str]:
    """All capabilities that containers of a manifest are given."""
    return {word for _indent, names in ADDED.findall(manifest) for word in names.split() if word != "-"}


@pytest.mark.skipif(has_no_systemd_analyze(), reason="NOT TESTED: needs systemd-analyze")
def test_systemd_takes_the_units_and_their_exposure_is_low() -> None:
    assert "lifld.service" in deployment.units()


@needs_kubectl
def test_the_manifests_have_what_the_pages_commands_name() -> None:
    objects = {}
    for text in deployment.built_manifests("base").split("\n---\n"):
        kind, name = re.findall(r"^(?:kind|  name): (\S+)$", text, re.MULTILINE)[:2]
        objects[kind, name] = text
    page = PAGE.read_text()
    namespace, pod = re.findall(r"kubectl -n (\S+) exec (\S+) ", page)[0]
    secret, key = re.findall(r"create secret generic (\S+) --from-file=(\w+)=", page)[0]
    first, number = pod.rsplit("-", 1)
    assert ("Namespace", namespace) in objects
    assert f"namespace: {namespace}\n" in objects["StatefulSet", first]
    assert number == "0" and "replicas: 1\n" in objects["StatefulSet", first]
    further = objects["DaemonSet", "lifl"]
    assert f"secretName: {secret}" in further and f"/{secret}/{key} " in further


@pytest.mark.skipif(has_no_kubernetes_schemas(), reason="NOT TESTED: needs kubectl and kubernetes-validate")
def test_the_manifests_fit_the_schemas_of_kubernetes(tmp_path: Path) -> None:
    assert deployment.manifests() == "10 objects fit"
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(deployment.built_manifests("base").replace("serviceName:", "servicename:"))
    with pytest.raises(SystemExit, match="servicename"):
        deployment.validate(wrong)


@needs_kubectl
def test_what_the_loader_needs_is_in_the_variant_for_it_alone() -> None:
    base, ebpf = map(deployment.built_manifests, deployment.VARIANTS)
    given = {"CHOWN", "FOWNER"}  # what hands the machine's folder over to the node's account, before the node starts
    assert added(base) == given
    assert added(ebpf) == given | {"BPF", "NET_ADMIN", "SETUID", "SETGID", "SETPCAP"}


def test_the_scripts_are_read_by_their_shells() -> None:
    assert deployment.scripts()


def install(*arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """The script for systemd, with words that install nothing."""
    env = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(["sh", SCRIPT, *arguments], env=env, capture_output=True, text=True, check=False)


def test_the_script_tells_anybody_of_each_option_that_the_page_names(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")  # who asks is not root
    (tmp_path / "id").chmod(0o755)
    told = install("--help", path=str(tmp_path))
    assert (told.returncode, told.stderr) == (0, "")
    named = set(re.findall(r"install\.sh (--\w+)", PAGE.read_text()))
    assert named and named <= set(re.findall(r"--\w+", told.stdout))
    refused = install("--remove", path=str(tmp_path))
    assert refused.returncode == 1 and "unknown: --remove" in refused.stderr
    assert "run it as root" in install("--purge", path=str(tmp_path)).stderr
