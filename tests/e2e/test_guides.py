"""What the documentation tells its reader to do is done as it stands, page by page, each in an empty folder."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path

import guides
import pytest
from skips import has_no_mounts, has_no_namespaces

from lifl.core.config.job import parse_job

NOT_HERE = has_no_namespaces() or has_no_mounts()
PAGES = (
    "docs/start.md",
    "README.md",
    "docs/trainers.md",
    "docs/evaluation.md",
    "docs/rules.md",
    "docs/http.md",
    "docs/aggregator.md",
    "docs/metrics.md",
    "docs/web.md",
    "docs/cluster.md",
    "docs/operating.md",
)
TRACKERS = "tests/integrations/test_trackers.py"
FLOWER = "tests/integrations/test_guide_flower.py"
PACKAGE = "needs a package that `make test` does not install"
NOT_RUN = {
    ("README.md", "a target of make"): (2, ".ci/run, tests/unit/test_examples.py"),
    ("start.md", "a target of make"): (1, "tests/unit/test_examples.py"),
    ("deploy.md", "asks an index of packages"): (1, "tests/wheel/try_wheel.py, tests/unit/test_packaging.py"),
    ("deploy.md", "needs systemd as the first process"): (1, "tests/wheel/try_wheel.py, tests/unit/test_deployment.py"),
    ("deploy.md", "needs a cluster of Kubernetes"): (1, "tests/deployment.py, tests/unit/test_deployment.py"),
    ("flower.md", PACKAGE): (7, f"{FLOWER}, tests/unit/test_packaging.py"),
    ("nvflare.md", PACKAGE): (2, "tests/integrations/test_nvflare.py"),
    ("metrics.md", PACKAGE): (2, TRACKERS),
    ("simulate.md", PACKAGE): (1, "tests/integrations/test_ray.py"),
    ("simulate.md", "takes long, a round of it is run"): (1, "tests/integrations/test_guides_with_packages.py"),
    ("cluster.md", "needs three members of etcd"): (1, "tests/integrations/test_guides_with_etcd.py"),
    ("failover.md", "needs three members of etcd"): (1, "tests/integrations/test_guides_with_etcd.py"),
    ("operating.md", "names a node of the reader's"): (1, "tests/cluster/test_deaths.py"),
}
"""Why blocks of a page are not run, how many they are, and what does as much of them as can be done."""
OTHERS = ("simulate", "failures", "failover", "security", "deploy", "flower", "nvflare", "pytorch", "jax", "openfl")
ALL = sorted({*PAGES, *(f"docs/{name}.md" for name in OTHERS)})
"""Those, ones that `tests/integrations` runs, and ones in which nothing but such blocks is."""
LOOSE = re.compile(r"^(?: {4}|\t)(?:\w*\$ )?(?:lifl|make|python|curl|pip|cd|export|\w+=\S+) .*$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LEAST = {"job": {"name": "j", "rounds": 1}, "model": {"path": "m"}, "selection": {"clients_per_round": 2}}


@pytest.mark.skipif(NOT_HERE, reason="NOT TESTED: needs namespaces and the right to mount")
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_tells_to_do_can_be_done(page: str) -> None:
    done = guides.run(guides.ROOT / page)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_each_block_that_is_not_run_has_a_reason_of_these_and_something_in_its_place() -> None:
    left = [block for page in ALL for block in guides.blocks(guides.ROOT / page) if block.not_run]
    found = Counter((block.page.name, block.not_run) for block in left)
    assert found == {each: count for each, (count, _instead) in NOT_RUN.items()}
    instead = {name for _count, names in NOT_RUN.values() for name in names.split(", ")}
    assert not [name for name in instead if not (guides.ROOT / name).is_file()]


@pytest.mark.parametrize("page", ALL)
def test_no_command_is_told_outside_of_a_block(page: str) -> None:
    assert not LOOSE.findall(FENCED.sub("", (guides.ROOT / page).read_text()))


FRAGMENTS = [
    block for page in ALL for block in guides.blocks(guides.ROOT / page) if block.language == "toml" and not block.title
]


@pytest.mark.parametrize("block", FRAGMENTS, ids=lambda block: block.place)
def test_each_part_of_a_jobs_file_is_one(block: guides.Block) -> None:
    told = tomllib.loads(block.text)
    parse_job({name: LEAST.get(name, {}) | told.get(name, {}) for name in LEAST | told})


def test_a_block_that_fails_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nx=1\n```\n\n```console\nb$ true\nwhat it prints\n```\n\n```sh\ntest $x = 2\n```\n")
    assert "on b true" in guides.script(page) and "prints" not in guides.script(page)
    assert guides.script(page).index('at="page.md:1"') < guides.script(page).index('at="page.md:10"')
    if not NOT_HERE:
        done = guides.run(page)
        assert (done.returncode, done.stderr) == (1, "page.md:10: exit code 1\n")
