"""What `pip install` takes along: an editable installation finds every package, a wheel those that setup.cfg lists."""

from __future__ import annotations

import configparser
import re
from datetime import date
from pathlib import Path

from lifl.core.formats import RELEASE

ROOT = Path(__file__).parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
KINDS_OF_CHANGE = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
"""Of Keep a Changelog."""
EXTRAS = re.compile(r"(?:lifl|\.)\[([\w,]+)\]")


def packages() -> set[str]:
    """The packages that there are, by their folders."""
    roots = dict(line.split(" = ") for line in SETUP["options"]["package_dir"].split("\n") if line)
    found = set()
    for name, folder in roots.items():
        top = ROOT / folder
        for init in top.rglob("__init__.py"):
            found.add(".".join((name, *init.parent.relative_to(top).parts)))
    return found


def test_a_wheel_has_all_packages() -> None:
    listed = SETUP["options"]["packages"].split()
    assert sorted(listed) == sorted(packages())


def test_each_package_that_is_pulled_has_its_reason_in_the_documents() -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    required = [re.split(r"[ ;>]", line)[0] for line in SETUP["options"]["install_requires"].split("\n") if line]
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(required) <= 18
    assert not [name for name in required if not any(re.search(rf"\b{name}\b", row.split("|")[1]) for row in rows)]
    extras = {key for key in SETUP["options.extras_require"] if key != "__name__"}
    assert extras == {name for row in rows for name in re.findall(r"`([a-z0-9]+)`", row.split("|")[1])}


def test_each_extra_that_a_page_tells_to_install_is_one() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    named = {name for page in pages for each in EXTRAS.findall(page.read_text()) for name in each.split(",")}
    assert named and named <= set(SETUP["options.extras_require"])


def test_what_is_compiled_includes_nothing_of_pythons() -> None:
    """One wheel is good for each CPython for that reason alone."""
    sources = [path for kind in ("*.c", "*.h") for path in (ROOT / "src").rglob(kind)]
    assert sources
    assert not [path.name for path in sources if "Python.h" in path.read_text()]


def test_the_changelog_has_the_version_that_is_packed() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *versions = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", text, re.MULTILINE)
    assert first == ("Unreleased", "")
    assert versions[0][0] == RELEASE
    numbers = [tuple(map(int, version.split("."))) for version, _day in versions]
    days = [date.fromisoformat(day) for _version, day in versions]
    assert numbers == sorted(set(numbers), reverse=True) and days == sorted(days, reverse=True)
    linked = re.findall(r"^\[(.+?)\]: ", text, re.MULTILINE)
    assert linked == ["Unreleased", *(version for version, _day in versions)]
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= KINDS_OF_CHANGE
