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
NOT_RUN = {
    "a target of make": 3,
    "needs a package that `make test` does not install": 11,
    "installs or deploys on machines of the reader's": 3,
    "needs three members of etcd": 2,
    "names a node of the reader's": 1,
    "takes long, a round of it is run": 1,
    "needs the updates of all clients of a job": 1,
}
"""Why a block is not run, and of how many that is said."""
OTHERS = ("simulate", "failures", "failover", "security", "deploy", "flower", "nvflare")
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


def test_each_block_that_is_not_run_has_a_reason_of_these() -> None:
    found = [block.not_run for page in ALL for block in guides.blocks(guides.ROOT / page) if block.not_run]
    assert Counter(found) == NOT_RUN


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
